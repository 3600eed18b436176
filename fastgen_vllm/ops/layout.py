"""The two layouts of a cache: the CPU's ``[L, B, H, 2*S, D]``, CUDA's ``[L, B, H, S, 2*D]``."""

from enum import Enum

import torch
from torch import Tensor


class Layout(Enum):
    """vLLM's orders of a CUDA cache; of the logical [L, B, H, S, 2*D], the physical axes."""

    HEADS_FIRST = (0, 1, 2, 3, 4)  # LBHNC
    SLOTS_FIRST = (0, 1, 3, 2, 4)  # LBNHC


def to_cuda_layout(arena: Tensor, layout: Layout = Layout.HEADS_FIRST) -> Tensor:
    """[L, B, H, S, 2*D] of the cache [L, B, H, 2*S, D], with the strides of a layout."""
    L, B, H, rows, D = arena.shape
    key = arena[..., : rows // 2, :].reshape(L, B, H, D, rows // 2).transpose(-1, -2)
    logical = torch.cat([key, arena[..., rows // 2 :, :]], dim=-1)
    return logical.permute(layout.value).contiguous().permute(layout.value)


def to_cpu_layout(cuda: Tensor) -> Tensor:
    """[L, B, H, 2*S, D] of the cache [L, B, H, S, 2*D]."""
    L, B, H, S, width = cuda.shape
    key, value = cuda.chunk(2, dim=-1)
    return torch.cat([key.transpose(-1, -2).reshape(L, B, H, S, width // 2), value], dim=-2)
