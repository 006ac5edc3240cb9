"""Tests of the Python package that start no engine; what needs vLLM or torch is skipped without them."""
