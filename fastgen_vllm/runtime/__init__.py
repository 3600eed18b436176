"""What a worker knows of requests that are, or may be, compacted; on any device, without vLLM.

state       the runtime: profiles prompts, compacts requests, stores and attends
tracked     one request in it
step        what is done in the layers of one step
messages    what scheduler and worker tell each other
inspection  what people may look at
"""

from fastgen_vllm.runtime.state import FastGenRuntime

__all__ = ["FastGenRuntime"]
