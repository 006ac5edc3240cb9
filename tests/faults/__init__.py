"""Faults of networks, servers and Redis between real processes, without an engine."""
