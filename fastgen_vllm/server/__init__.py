"""Command line of the server, on top of vLLM's own."""
