"""What our attention backends do: stock kernels for stock rows, ours for compacted rows.

Mixins for the classes of a vLLM backend; ``cpu.py`` and ``cuda.py`` join the two.
"""

import copy
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple

import torch
from vllm.v1.attention.backend import (
    AttentionImpl,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)

from fastgen_vllm.integration.passes import Passes
from fastgen_vllm.runtime import FastGenRuntime
from fastgen_vllm.runtime.step import DecodeRows, StepWork

#: vLLM skips the write of a token with this slot.
NO_SLOT = -1


class StepSource:
    """Plans a step from what vLLM's attention metadata does not carry.

    Once for all builders: layers of one cache have one for each number of query heads.

    Args:
        request_ids: of the current batch, in order.
        input_ids: [T] of the current batch.
    """

    def __init__(
        self,
        runtime: FastGenRuntime,
        request_ids: Callable[[], list[str]],
        input_ids: Callable[[], torch.Tensor],
    ) -> None:
        self._runtime = runtime
        self._request_ids = request_ids
        self._input_ids = input_ids
        self._planned: tuple[StepWork | None] | None = None

    def start_step(self) -> None:
        """Forget the step before."""
        self._planned = None

    def work(self, common: CommonAttentionMetadata) -> StepWork | None:
        """What FastGen does in this step."""
        if self._planned is None:
            self._planned = (self._plan(common),)
        return self._planned[0]

    def _plan(self, common: CommonAttentionMetadata) -> StepWork | None:
        request_ids = self._request_ids()
        lengths = common.seq_lens_cpu_upper_bound  # exact: speculative decoding is refused
        assert lengths is not None
        return self._runtime.plan_step(
            request_ids,
            common.query_start_loc_cpu.tolist(),
            lengths[: len(request_ids)].tolist(),
            common.block_table_tensor,
            self._input_ids(),
        )


class StrictRows(NamedTuple):
    """What layers with a strict mask, in which no token sees itself, see of a step."""

    metadata: Any  # the stock metadata of requests a token shorter
    first_tokens: torch.Tensor  # [F] int64, rows of tokens that see nothing


class PerHeadBuilding(AttentionMetadataBuilder):
    """Takes compacted rows out of the stock path, and masks strictly where layers want it."""

    #: stock metadata with fields ``work`` and ``strict``
    metadata_class: ClassVar[type[Any]]
    source: StepSource | None = None

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, *args: Any
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, *args)
        context = vllm_config.compilation_config.static_forward_context
        self._has_strict = any(
            isinstance(context[name].impl, PerHeadAttention) and context[name].impl.strict
            for name in layer_names
        )

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> Any:
        source = self.source
        work = None if source is None else source.work(common_attn_metadata)
        if work is None and not self._has_strict:
            return super().build(common_prefix_len, common_attn_metadata, fast_build)
        stock = common_attn_metadata
        if work is not None and work.decode is not None:
            stock = copy.copy(stock)
            # The stock kernels see one token of a compacted row; its output is replaced.
            stock.seq_lens = stock.seq_lens.index_fill(0, work.decode.rows, 1)
            stock.slot_mapping.index_fill_(0, work.decode.token_index, NO_SLOT)
        if work is not None and work.only_decode:
            return self.build_without_stock(stock, work)
        strict = self._strict_rows(stock, fast_build) if self._has_strict else None
        metadata = super().build(common_prefix_len, stock, fast_build)
        return self._extended(metadata, work, strict)

    def build_without_stock(self, common: CommonAttentionMetadata, work: StepWork) -> Any:
        """Metadata of a step in which no stock kernel runs."""
        return self._extended(super().build(0, common, True), work, None)

    def _extended(self, metadata: Any, work: StepWork | None, strict: StrictRows | None) -> Any:
        stock_fields = {f.name: getattr(metadata, f.name) for f in fields(metadata)}
        return self.metadata_class(**stock_fields, work=work, strict=strict)

    def _strict_rows(self, common: CommonAttentionMetadata, fast_build: bool) -> StrictRows:
        """Masks are aligned with a request's end: with a token less, no token sees itself."""
        starts = common.query_start_loc_cpu
        lengths = common.seq_lens_cpu_upper_bound
        assert lengths is not None
        computed = starts.diff()
        is_first = lengths[: len(computed)] == computed
        first_tokens = starts[:-1][is_first & (computed > 0)].long()
        shorter = copy.copy(common)
        # Of a single first token the kernel sees itself; what it says is replaced by zeros.
        shorter.seq_lens = (common.seq_lens - 1).clamp(min=1)
        metadata = super().build(0, shorter, fast_build)
        return StrictRows(metadata, first_tokens.to(common.seq_lens.device))


class PerHeadAttention(AttentionImpl):
    """One layer's attention.

    Args:
        strict: no token sees itself; a request's first token sees nothing and gets zeros.
        passes: of a layer that a step passes several times.
    """

    runtime: FastGenRuntime | None = None
    layer_index = 0  # of the K and V that are read, in the cache

    def __init__(
        self, *args: Any, strict: bool = False, passes: Passes | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.strict = strict
        self.passes = passes

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        work: StepWork | None = getattr(attn_metadata, "work", None)
        if work is None or not work.only_decode:
            strict = attn_metadata.strict if self.strict and attn_metadata is not None else None
            stock = attn_metadata if strict is None else strict.metadata
            super().forward(layer, query, key, value, kv_cache, stock, output, *args, **kwargs)
            if strict is not None:
                output.index_fill_(0, strict.first_tokens, 0)
        if work is not None and (self.passes is None or self.passes.is_last):
            assert self.runtime is not None
            if work.observed:
                reader = layer.layer_name
                self.runtime.observe(self.layer_index, query, self.scale, work, self.strict, reader)
            if work.decode is not None:
                self._decode(self.runtime, query, key, value, output, work.decode)
        return output

    def _decode(
        self,
        runtime: FastGenRuntime,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        output: torch.Tensor,
        rows: DecodeRows,
    ) -> None:
        """Attend for compacted requests; their tokens are stored by the layer that owns K and V."""
        new = None
        if self.kv_sharing_target_layer_name is None:
            assert key is not None and value is not None
            new = (key, value)
        if new is not None and not self.strict:
            runtime.store(self.layer_index, *new, rows)
        runtime.attend(self.layer_index, query, output, self.scale, rows)
        if new is not None and self.strict:
            runtime.store(self.layer_index, *new, rows)
