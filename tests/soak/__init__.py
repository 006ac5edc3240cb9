"""The soak: hours of faults in minutes. See `python -m tests.soak --help`."""
