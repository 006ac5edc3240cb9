"""Measurements: every one is a ratio, or a difference, to a baseline measured in the same run."""
