"""Measurements: the published algorithm's structure, inputs like video, and scripts that compare."""
