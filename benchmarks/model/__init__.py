"""Predicts times on a GPU from bytes and operations: `python -m benchmarks.model`."""
