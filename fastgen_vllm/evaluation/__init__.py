"""What compression costs: ``fastgen-vllm eval``, on the real engine."""
