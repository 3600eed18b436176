"""FastGen on vLLM's GPU worker and FlashAttention backend.

Written without a GPU to try it on: docs/cuda.md says what was run how. The attention layer is
outside of piecewise CUDA graphs, as stock's is, so this code runs in every step; full graphs are
left out, because a step's compacted rows are known only when it is planned.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends import fa_utils
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadata,
    FlashAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.worker.gpu_worker import Worker

from fastgen_vllm import ops
from fastgen_vllm.config import DecodeKernel
from fastgen_vllm.integration.attention import (
    PerHeadAttention,
    PerHeadBuilding,
    StrictRows,
)
from fastgen_vllm.integration.folded import FoldedDecode
from fastgen_vllm.integration.worker import PerHeadWorking
from fastgen_vllm.lifecycle import PROFILE_BYTES
from fastgen_vllm.runtime.step import StepWork

#: Scratch of the ops: at most 64 MiB for scores of ``decode_attention``, and its states.
SCRATCH_BYTES = 96 * 2**20


@dataclass
class PerHeadFlashMetadata(FlashAttentionMetadata):
    """Stock metadata, what FastGen does in this step, and what strict layers see."""

    work: StepWork | None = None
    strict: StrictRows | None = None


class PerHeadFlashBuilder(PerHeadBuilding, FlashAttentionMetadataBuilder):
    """Stock's builder without full CUDA graphs."""

    metadata_class = PerHeadFlashMetadata

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        # vLLM then captures what is between attention layers: piecewise graphs.
        return AttentionCGSupport.NEVER


class PerHeadFlashAttention(PerHeadAttention, FlashAttentionImpl):
    """One layer's attention on a GPU."""


class PerHeadFlashBackend(FlashAttentionBackend):
    """vLLM's FlashAttention backend with per-head block tables."""

    @staticmethod
    def get_impl_cls() -> type[FlashAttentionImpl]:
        return PerHeadFlashAttention

    @staticmethod
    def get_builder_cls() -> type[FlashAttentionMetadataBuilder]:
        return PerHeadFlashBuilder

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        # A head's page in one piece, so that a compacted head is read in whole pages.
        # FlashAttention takes any order.
        return (KVCacheLayout.LBHNC,)


class StockFlashDecode(FoldedDecode):
    """vLLM's FlashAttention over single heads: ``decode_kernel: stock``."""

    def attend(self, query: Tensor, table: Tensor, lengths: Tensor, scale: float) -> Tensor:
        num_jobs, _, head_size = query.shape
        key, value = self.pages.unsqueeze(2).chunk(2, dim=-1)  # [L*B*H, S, 1, D]
        output = torch.empty_like(query)
        fa_utils.flash_attn_varlen_func(
            q=query,
            k=key,
            v=value,
            out=output,
            cu_seqlens_q=torch.arange(num_jobs + 1, dtype=torch.int32, device=query.device),
            max_seqlen_q=1,
            seqused_k=lengths,
            max_seqlen_k=table.shape[1] * self.pages.shape[1],
            softmax_scale=scale,
            causal=True,
            block_table=table,
            fa_version=fa_utils.get_flash_attn_version(head_size=head_size),
        )
        return output

    def keys(self, pages: Tensor) -> Tensor:
        return self.pages[pages, :, : self.pages.shape[2] // 2]


class XformersDecode(StockFlashDecode):
    """xformers' paged attention over single heads: ``decode_kernel: xformers``."""

    def attend(self, query: Tensor, table: Tensor, lengths: Tensor, scale: float) -> Tensor:
        from xformers.ops import fmha

        num_jobs, group_size, _ = query.shape
        bias = fmha.attn_bias.PagedBlockDiagonalPaddedKeysMask.from_seqlens(
            q_seqlen=[1] * num_jobs,
            kv_seqlen=lengths.tolist(),
            block_tables=table,
            page_size=self.pages.shape[1],
            device=query.device,
        )
        # [1, L*B*H*S, 1, G, D]: all query heads of a head read the same K and V
        key, value = (
            part[None, :, None, None].expand(-1, -1, -1, group_size, -1)
            for part in self.pages.flatten(0, 1).chunk(2, dim=-1)
        )
        output: Tensor = fmha.memory_efficient_attention_forward(
            query[None, :, None], key, value, attn_bias=bias, scale=scale
        )
        return output.reshape(query.shape)


class FlashWorking(PerHeadWorking):
    """What is the same wherever FlashAttention's backend runs."""

    replaced_backend = AttentionBackendEnum.FLASH_ATTN
    backend_class = PerHeadFlashBackend

    def cache_view(self, stacked: Tensor) -> Tensor:
        return stacked

    def decode_kernel(self, name: DecodeKernel, cache: Tensor) -> Callable[..., None]:
        match name:
            case "stock":
                return StockFlashDecode(cache)
            case "xformers":
                return XformersDecode(cache)
            case "fastgen":
                return ops.decode_attention

    def note_memory(self, cache: Tensor) -> str:
        return "fastgen/cuda"

    def working_bytes(self, num_heads: int) -> int:
        # What vLLM leaves of a GPU's memory beside the pool is not ours.
        longest: int = self.model_config.max_model_len
        return PROFILE_BYTES * num_heads * longest + SCRATCH_BYTES


class PerHeadCUDAWorker(FlashWorking, Worker):
    """vLLM's GPU worker with per-head block tables."""
