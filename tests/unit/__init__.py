"""Tests of the Python package that start no engine. Those that need vLLM or torch are skipped where they are missing."""
