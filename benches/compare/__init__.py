"""Our cache beside those of others, each from its published package, in one run: `python -m benches.compare`."""
