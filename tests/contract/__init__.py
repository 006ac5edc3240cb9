"""What we rely on in vLLM, checked against the installed release without starting an engine."""
