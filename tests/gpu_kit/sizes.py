"""The shapes that are measured: small ones in a dry run."""

from dataclasses import replace

from fastgen_vllm.benchmark.kernels import Shape
from tests.gpu.device import DRY

PAGE_SLOTS = 16  # vLLM's on a GPU
MOST_DRY = 40  # tokens


def shape(text: str, page_slots: int = PAGE_SLOTS) -> Shape:
    """Of a layer's step, RxNxHxGxD."""
    whole = Shape.parse(text, page_slots)
    if not DRY:
        return whole
    return replace(whole, requests=min(whole.requests, 2), tokens=min(whole.tokens, MOST_DRY))


#: An 8B model's layer, in the middle of the range.
USUAL = "64x2048x8x4x128"
#: Requests and kept tokens: the time of each stands beside PyTorch's and Triton's.
GRID = (
    *("1x2048x8x4x128", "1x8192x8x4x128", "1x32768x8x4x128"),
    *("8x256x8x4x128", "8x2048x8x4x128", "8x8192x8x4x128"),
    *("64x256x8x4x128", USUAL, "64x8192x8x4x128"),
    *("256x256x8x4x128", "256x2048x8x4x128"),
)
#: One token a head: what a call costs whatever is kept.
FEW, MANY = "1x1x8x4x128", "256x1x8x4x128"
PROMPT = "1x8192x8x4x128"
FULL = ("64x512x8x4x128", USUAL, "64x8192x8x4x128", "256x2048x8x4x128")
LAYERS = 2 if DRY else 32
STEPS = ("1x2048x8x4x128", "16x2048x8x4x128", "64x1024x8x4x128")
