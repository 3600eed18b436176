"""The load test behind ``benchmark.py``: stock vLLM and FastGen under the same load."""
