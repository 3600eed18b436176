"""The kernels: ``torch.ops.fastgen.*`` with documented wrappers. Importing this loads them.

The wrappers describe the CPU's cache, ``[L, B, H, 2*S, D]``. On CUDA, where it was built, it is
``[L, B, H, S, 2*D]``, K and V of a slot side by side, and ``S`` a multiple of 16.
"""

from importlib import import_module

import torch

try:
    import_module("fastgen_vllm._C")  # registers torch.ops.fastgen
except ImportError as error:
    raise ImportError(
        f"the compiled kernels fastgen_vllm._C cannot be loaded ({error}); "
        "build them with `make setup`"
    ) from error

from fastgen_vllm.ops.attention_mass import attention_mass
from fastgen_vllm.ops.compact import compact
from fastgen_vllm.ops.decode_attention import decode_attention
from fastgen_vllm.ops.replay import replay
from fastgen_vllm.ops.replayed_mass import replayed_mass
from fastgen_vllm.ops.store import store
from fastgen_vllm.ops.value_norm import value_norm

__all__ = [
    "attention_mass",
    "compact",
    "decode_attention",
    "device_types",
    "isa",
    "replay",
    "replayed_mass",
    "store",
    "value_norm",
]


def isa() -> str:
    """Name the instruction set in use: baseline, avx2, avx512, avx512bf16 or amx."""
    return str(torch.ops.fastgen.isa())


def device_types() -> tuple[str, ...]:
    """Name the devices that the kernels were built for: ``cpu``, and ``cuda`` where it was."""
    return ("cpu", "cuda") if torch.ops.fastgen.has_cuda() else ("cpu",)
