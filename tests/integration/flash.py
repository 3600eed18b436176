"""The CUDA worker's code on the CPU: FlashAttention and the ops replaced, everything else real.

vLLM's FlashAttention backend, its cache order and its metadata run unchanged; the two functions
that it calls on a GPU are PyTorch here, and the ops get their caches in the CPU's layout.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.v1.attention.backends import fa_utils, flash_attn, registry
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.selector import _cached_get_attn_backend
from vllm.v1.worker.cpu_worker import CPUWorker

from fastgen_vllm import ops
from fastgen_vllm.integration.cuda import FlashWorking
from tests.ops.layouts import OPS, relaid


class FlashWorker(FlashWorking, CPUWorker):
    """The CUDA worker on vLLM's CPU worker, which asks for the backend by another name."""

    replaced_backend = AttentionBackendEnum.CPU_ATTN


class InOrderFlashWorker(FlashWorker):
    """The same with results that are there at once; see `tests.integration.engine`."""

    def init_device(self) -> None:
        super().init_device()
        self.model_runner.use_async_scheduling = False


@contextmanager
def no_gpu() -> Iterator[pytest.MonkeyPatch]:
    """Replace what needs a GPU; afterwards vLLM builds its own backends again."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (flash_attn, fa_utils):
            patch.setattr(module, "get_flash_attn_version", flash_version)
            patch.setattr(module, "flash_attn_varlen_func", flash_attention, raising=False)
        patch.setattr(flash_attn, "reshape_and_cache_flash", write_cache, raising=False)
        for name in OPS:
            patch.setattr(ops, name, relaid(getattr(ops, name)))
        patch.setattr(registry, "_ATTN_OVERRIDES", dict(registry._ATTN_OVERRIDES))
        yield patch
    _cached_get_attn_backend.cache_clear()


def flash_version(head_size: int | None = None, **_: Any) -> int:
    """The version that every GPU since Ampere runs."""
    return 2


def flash_attention(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    softmax_scale: float,
    causal: bool,
    block_table: Tensor,
    **_: Any,
) -> None:
    """Causal attention over paged K and V [B, S, H, D], one sequence after another."""
    assert causal
    starts = cu_seqlens_q.tolist()
    for row, (begin, end) in enumerate(pairwise(starts)):
        length = int(seqused_k[row])
        pages = block_table[row, : -(-length // k.shape[1])].long()
        key, value = (
            part[pages].flatten(0, 1)[:length].repeat_interleave(q.shape[1] // k.shape[2], 1)
            for part in (k, v)
        )
        scores = torch.einsum("qhd,khd->hqk", q[begin:end].float(), key.float()) * softmax_scale
        position = torch.arange(length - (end - begin), length)
        scores = scores.masked_fill(torch.arange(length) > position[:, None], float("-inf"))
        result = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value.float())
        out[begin:end] = result.to(out.dtype)


def write_cache(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor, *_: Any
) -> None:
    """Write tokens to their slots; those of slot -1 to none."""
    stored = (slots >= 0).nonzero()[:, 0]
    where = slots[stored] // key_cache.shape[1], slots[stored] % key_cache.shape[1]
    key_cache[where] = key[stored]
    value_cache[where] = value[stored]
