"""Measurements inside a real vLLM engine on the CPU, with the connector against without it."""
