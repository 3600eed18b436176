"""HTTP endpoints below ``/fastgen`` and a page to look at, as a vLLM endpoint plugin."""
