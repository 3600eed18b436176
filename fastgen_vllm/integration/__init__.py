"""Where the engine meets vLLM.

plugin      entry point: registers the cache spec, nothing else
options     our options as vLLM engine options, and what vLLM options we refuse
cache       cache spec and block accounting per request
scheduler   compaction protocol, scheduler side
worker      compaction protocol, worker side
waiting     requests that were preempted and wait
attention   attention backend: stock kernels for stock rows, ours for compacted rows
requests    validation of per-request options in the API server
metrics     Prometheus metrics
names       the vLLM names we rely on, checked at start
"""
