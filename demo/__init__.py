"""The demo: what this project is for, shown on a machine without a GPU."""
