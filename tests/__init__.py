"""Suites that cross the boundaries of crates."""
