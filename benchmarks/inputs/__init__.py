"""Inputs like video, and the cases that are measured."""
