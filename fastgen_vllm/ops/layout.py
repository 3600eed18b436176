"""The layouts of a cache: the CPU's ``[L, B, H, 2*S, D]``, CUDA's ``[L, B, H, S, 2*D]``.

vLLM has a second order for CPUs with AMX, of bfloat16 only: a line of 64 bytes holds pairs, of two
columns of K for 16 tokens or of two tokens' V in 16 columns. Such a cache is
``[L, B, H, 2*S, D/2, 2]`` here, a shape that says what it is; K of a page is ``[S/16, D/2, 16, 2]``
and V ``[D/16, S/2, 16, 2]``.
"""

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


#: Tokens of K, or columns of V, that a line of a page in pairs holds.
PAIR_LANES = 16


def to_pairs(arena: Tensor) -> Tensor:
    """[L, B, H, 2*S, D/2, 2] of the cache [L, B, H, 2*S, D]."""
    L, B, H, rows, D = arena.shape
    S = rows // 2
    key = arena[..., :S, :].reshape(L, B, H, D // 2, 2, S // PAIR_LANES, PAIR_LANES)
    value = arena[..., S:, :].reshape(L, B, H, S // 2, 2, D // PAIR_LANES, PAIR_LANES)
    halves = [half.permute(0, 1, 2, 5, 3, 6, 4).reshape(L, B, H, S, D) for half in (key, value)]
    return torch.cat(halves, dim=3).view(L, B, H, rows, D // 2, 2)


def from_pairs(pairs: Tensor) -> Tensor:
    """[L, B, H, 2*S, D] of the cache [L, B, H, 2*S, D/2, 2]."""
    L, B, H, rows, half, _ = pairs.shape
    S, D = rows // 2, 2 * half
    key, value = pairs.reshape(L, B, H, 2, S * D).unbind(3)
    key = key.view(L, B, H, S // PAIR_LANES, D // 2, PAIR_LANES, 2).permute(0, 1, 2, 4, 6, 3, 5)
    value = value.view(L, B, H, D // PAIR_LANES, S // 2, PAIR_LANES, 2).permute(0, 1, 2, 4, 6, 3, 5)
    return torch.cat([half.reshape(L, B, H, S, D) for half in (key, value)], dim=3)
