"""Synthetic inputs that resemble video, and the cases that are measured."""
