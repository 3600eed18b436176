"""The ops of a GPU behind the CPU's signatures: tensors go there for a call, and back.

``FASTGEN_GPU_DRY=1`` puts the references in the place of the kernels and the CPU in that of the
GPU, so that everything but the kernels can be tried where there is none.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen_vllm import ops
from fastgen_vllm.ops import reference
from fastgen_vllm.ops.layout import Layout, to_cpu_layout, to_cuda_layout
from tests.ops.layouts import OPS, relaid

DRY = os.environ.get("FASTGEN_GPU_DRY") == "1"
DEVICE = torch.device("cpu" if DRY else "cuda")
#: Kept here, because tests put :class:`DeviceOps` in their place.
KERNELS: dict[str, Callable[..., None]] = {
    name: relaid(getattr(reference, name)) if DRY else getattr(ops, name) for name in OPS
}


def stand_in() -> None:
    """In a dry run, and in this process, the references are the ops."""
    for name, kernel in KERNELS.items():
        setattr(ops, name, kernel)


def is_missing() -> str | None:
    """Why there is nothing to test; None if there is."""
    if DRY:
        return None
    if not torch.cuda.is_available():
        return "there is no GPU"
    return None if "cuda" in ops.device_types() else "the kernels were built without CUDA"


@dataclass
class DeviceOps:
    """The ops, as attributes.

    Attributes:
        layout: of the cache on the device.
        captured: a call is captured in a CUDA graph, and its replay is what counts.
    """

    layout: Layout = Layout.HEADS_FIRST
    captured: bool = False
    device: torch.device = DEVICE

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name not in KERNELS:
            raise AttributeError(name)
        return lambda *arguments: self._call(KERNELS[name], arguments)

    def _call(self, kernel: Callable[..., None], arguments: tuple[object, ...]) -> None:
        there = [self.moved(a) if isinstance(a, Tensor) else a for a in arguments]
        run(lambda: kernel(*there), self.captured)
        for argument, result in zip(arguments, there, strict=True):
            if isinstance(argument, Tensor):
                assert isinstance(result, Tensor)
                back = result.cpu()
                argument.copy_(to_cpu_layout(back) if argument.dim() == 5 else back)

    def moved(self, tensor: Tensor) -> Tensor:
        """A copy on the device: a cache in its layout, others with the gaps between their rows."""
        if tensor.dim() == 5:
            return to_cuda_layout(tensor, self.layout).to(self.device, copy=True)
        strides, shape = tensor.stride(), tensor.shape
        copy = torch.empty_strided(shape, strides, dtype=tensor.dtype, device=self.device)
        return copy.copy_(tensor)


def run(call: Callable[[], object], captured: bool = False) -> None:
    """Call, or capture and replay; wait for its end."""
    if captured and not DRY:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        graph.replay()
    else:
        call()
    wait()


def wait() -> None:
    """Wait for the device."""
    if not DRY:
        torch.cuda.synchronize()


def side_stream() -> AbstractContextManager[object]:
    """In here calls go to another stream, which has something else to do first."""
    if DRY:
        return nullcontext()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second
    return torch.cuda.stream(stream)
