"""End-to-end suites: a real vLLM engine on the CPU, with and without our connector."""
