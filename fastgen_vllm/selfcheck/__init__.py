"""``python -m fastgen_vllm.selfcheck``: is this installation right on this machine, and how fast?

Checks every op on the machine's device against its PyTorch reference, times the kernels beside
vLLM's and beside what the memory could deliver, and checks that an engine with all heads full
writes what stock vLLM writes. Everything goes into one JSON report.
"""
