"""Measurements of the Python API, without an engine."""
