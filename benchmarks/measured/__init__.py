"""Measurements of the operator: `make bench`, memory, and host time of a call."""
