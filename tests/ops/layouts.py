"""The CPU's ops in the place of CUDA's."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastgen_vllm.ops.layout import to_cpu_layout, to_cuda_layout

OPS = (
    *("attention_mass", "compact", "decode_attention", "replay", "replayed_mass"),
    *("store", "value_norm"),
)


def relaid(op: Callable[..., None]) -> Callable[..., None]:
    """An op of the CPU on caches in CUDA's layout."""
    names = inspect.signature(op).parameters

    def run(*in_order: Any, **named: Any) -> None:
        arguments = (*in_order, *(named[name] for name in list(names)[len(in_order) :]))
        caches = {id(a): a for a in arguments if isinstance(a, Tensor) and a.dim() == 5}
        converted = {key: to_cpu_layout(cache) for key, cache in caches.items()}
        op(*(converted.get(id(a), a) for a in arguments))
        for key, cache in caches.items():
            cache.copy_(to_cuda_layout(converted[key]))

    return run
