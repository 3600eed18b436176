"""Attention backend: stock kernels for stock rows, ours for compacted rows."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from vllm.model_executor.layers.attention.attention import get_attention_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)

from fastgen_vllm.integration.cache import PerHeadSpec
from fastgen_vllm.integration.runtime import FastGenRuntime
from fastgen_vllm.integration.step import StepWork

#: The one page layout that our kernels read: K of a page is [D, S], V is [S, D].
PAGE_LAYOUT = "vec"
#: vLLM skips the write of a token with this slot.
NO_SLOT = -1


@dataclass
class PerHeadMetadata(CPUAttentionMetadata):
    """Stock metadata, and what FastGen does in this step."""

    work: StepWork | None = None


@dataclass(frozen=True)
class StepSource:
    """Where the builder finds what vLLM's attention metadata does not carry."""

    runtime: FastGenRuntime
    request_ids: Callable[[], list[str]]  # of the current batch, in order
    input_ids: Callable[[], torch.Tensor]  # [T] of the current batch


class PerHeadMetadataBuilder(CPUAttentionMetadataBuilder):
    """Takes compacted rows out of the stock path."""

    source: StepSource | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.kv_cache_spec, PerHeadSpec):
            # On CPUs with AMX vLLM would pack K in tiles. `vec` runs on all x86 CPUs.
            self.isa = PAGE_LAYOUT
            self._set_isa_to_layers(self.layer_names)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> CPUAttentionMetadata:
        work = self._plan(common_attn_metadata)
        if work is None:
            return super().build(common_prefix_len, common_attn_metadata, fast_build)
        stock = common_attn_metadata
        if work.decode is not None:
            stock = copy.copy(stock)
            # The stock kernels see one token of a compacted row; its output is replaced.
            stock.seq_lens = stock.seq_lens.index_fill(0, work.decode.rows, 1)
            stock.slot_mapping[work.decode.token_index] = NO_SLOT
        if work.only_decode:
            return PerHeadMetadata(
                num_actual_tokens=stock.num_actual_tokens,
                max_query_len=stock.max_query_len,
                query_start_loc=stock.query_start_loc,
                max_seq_len=stock.max_seq_len,
                seq_lens=stock.seq_lens,
                block_table=stock.block_table_tensor,
                slot_mapping=stock.slot_mapping,
                scheduler_metadata=None,
                work=work,
            )
        metadata = super().build(common_prefix_len, stock, fast_build)
        stock_fields = {f.name: getattr(metadata, f.name) for f in fields(metadata)}
        return PerHeadMetadata(**stock_fields, work=work)

    def _plan(self, common: CommonAttentionMetadata) -> StepWork | None:
        source = self.source
        if source is None:
            return None
        request_ids = source.request_ids()
        return source.runtime.plan_step(
            request_ids,
            common.query_start_loc.tolist(),
            common.seq_lens[: len(request_ids)].tolist(),
            common.block_table_tensor,
            source.input_ids(),
        )


class PerHeadAttention(CPUAttentionBackendImpl):
    """One layer's attention."""

    runtime: FastGenRuntime | None = None
    layer_index = 0

    def do_kv_cache_update(
        self,
        layer: Any,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        metadata, *_ = get_attention_context(layer.layer_name)
        work = metadata.work if isinstance(metadata, PerHeadMetadata) else None
        if work is None or not work.only_decode:  # else no token goes to a stock page
            super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: CPUAttentionMetadata | None,
        output: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        work = attn_metadata.work if isinstance(attn_metadata, PerHeadMetadata) else None
        if work is None or not work.only_decode:
            super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs
            )
        if work is not None:
            assert self.runtime is not None
            if work.observed:
                self.runtime.observe(self.layer_index, query, self.scale, work)
            if work.decode is not None:
                self.runtime.decode(
                    self.layer_index, query, key, value, output, self.scale, work.decode
                )
        return output


class PerHeadBackend(CPUAttentionBackend):
    """vLLM's CPU attention backend with per-head block tables."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        return PerHeadAttention

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        return PerHeadMetadataBuilder
