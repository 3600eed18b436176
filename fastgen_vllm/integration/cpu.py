"""FastGen on vLLM's CPU worker and CPU attention backend."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import vllm._custom_ops as vllm_ops
from torch import Tensor
from vllm import envs
from vllm.model_executor.layers.attention.attention import get_attention_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
    _get_attn_isa,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.worker.cpu_worker import CPUWorker

from fastgen_vllm import ops
from fastgen_vllm.config import DecodeKernel
from fastgen_vllm.integration.attention import (
    PerHeadAttention,
    PerHeadBuilding,
    StrictRows,
)
from fastgen_vllm.integration.cache import PerHeadSpec
from fastgen_vllm.integration.folded import FoldedDecode
from fastgen_vllm.integration.worker import PerHeadWorking
from fastgen_vllm.memory import use_huge_pages
from fastgen_vllm.ops.layout import from_pairs
from fastgen_vllm.runtime.step import StepWork


def page_isa(dtype: torch.dtype, block_size: int, head_size: int) -> str:
    """vLLM's kernels for the cache, by its own choice among the orders that our kernels read.

    ``amx`` packs K and V in pairs, on CPUs with AMX; ``vec`` runs on all x86 CPUs.
    """
    return "amx" if _get_attn_isa(dtype, block_size, head_size) == "amx" else "vec"


@dataclass
class PerHeadCPUMetadata(CPUAttentionMetadata):
    """Stock metadata, what FastGen does in this step, and what strict layers see."""

    work: StepWork | None = None
    strict: StrictRows | None = None


class PerHeadCPUBuilder(PerHeadBuilding, CPUAttentionMetadataBuilder):
    """Stock's builder for the pages that our kernels read."""

    metadata_class = PerHeadCPUMetadata

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.kv_cache_spec, PerHeadSpec):
            self.isa = page_isa(self.dtype, self.block_size, self.head_dim)
            self._set_isa_to_layers(self.layer_names)

    def build_without_stock(
        self, common: CommonAttentionMetadata, work: StepWork
    ) -> PerHeadCPUMetadata:
        # Stock's plan of its work takes as long as a layer; nothing would read it.
        return PerHeadCPUMetadata(
            num_actual_tokens=common.num_actual_tokens,
            max_query_len=common.max_query_len,
            query_start_loc=common.query_start_loc,
            max_seq_len=common.max_seq_len,
            seq_lens=common.seq_lens,
            block_table=common.block_table_tensor,
            slot_mapping=common.slot_mapping,
            scheduler_metadata=None,
            work=work,
        )


class PerHeadCPUAttention(PerHeadAttention, CPUAttentionBackendImpl):
    """One layer's attention on the CPU."""

    def do_kv_cache_update(
        self,
        layer: Any,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        metadata, *_ = get_attention_context(layer.layer_name)
        work = metadata.work if isinstance(metadata, PerHeadCPUMetadata) else None
        if work is None or not work.only_decode:  # else no token goes to a stock page
            super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)


class PerHeadCPUBackend(CPUAttentionBackend):
    """vLLM's CPU attention backend with per-head block tables."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        return PerHeadCPUAttention

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        return PerHeadCPUBuilder


class StockCPUDecode(FoldedDecode):
    """vLLM's CPU kernel over single heads: ``decode_kernel: stock``."""

    def attend(self, query: Tensor, table: Tensor, lengths: Tensor, scale: float) -> Tensor:
        num_jobs, group_size, head_size = query.shape
        start = torch.arange(num_jobs + 1, dtype=torch.int32)
        slots = self.pages.shape[1] // 2
        key, value = self.pages.view(-1, 1, 2 * slots, head_size).chunk(2, dim=2)
        output = torch.empty_like(query)
        plan = vllm_ops.cpu_attn_get_scheduler_metadata(
            num_reqs=num_jobs,
            num_heads=group_size,
            num_kv_heads=1,
            head_dim=head_size,
            seq_lens=lengths,
            dtype=query.dtype,
            query_start_loc=start,
            causal=True,
            sliding_window_size=-1,
            isa="amx" if self._in_pairs else "vec",
            enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
        )
        vllm_ops.cpu_attention_with_kv_cache(
            query=query,
            key_cache=key,
            value_cache=value,
            output=output,
            query_start_loc=start,
            seq_lens=lengths,
            scale=scale,
            causal=True,
            alibi_slopes=None,
            sliding_window=-1,
            block_table=table,
            softcap=0,
            scheduler_metadata=plan,
            s_aux=None,
        )
        return output

    def keys(self, pages: Tensor) -> Tensor:
        gathered = self.pages[pages.flatten()]
        if self._in_pairs:
            gathered = from_pairs(gathered[None, :, None])[0, :, 0]
        slots, head_size = gathered.shape[1] // 2, gathered.shape[2]
        columns = gathered[:, :slots]  # [P, S, D], of which the memory is [D, S]
        return columns.reshape(*pages.shape, head_size, slots).transpose(-1, -2)

    @property
    def _in_pairs(self) -> bool:
        return self.pages.dim() == 4


class PerHeadCPUWorker(PerHeadWorking, CPUWorker):
    """vLLM's CPU worker with per-head block tables."""

    replaced_backend = AttentionBackendEnum.CPU_ATTN
    backend_class = PerHeadCPUBackend

    def cache_view(self, stacked: Tensor) -> Tensor:
        *outer, slots, width = stacked.shape
        assert stacked.stride()[3:] == (width, 1), "a page is not contiguous"
        if page_isa(stacked.dtype, slots, width // 2) == "amx":
            return stacked.view(*outer, 2 * slots, width // 4, 2)
        return stacked.view(*outer, 2 * slots, width // 2)

    def decode_kernel(self, name: DecodeKernel, cache: Tensor) -> Callable[..., None]:
        return StockCPUDecode(cache) if name == "stock" else ops.decode_attention

    def note_memory(self, cache: Tensor) -> str:
        memory = "huge" if use_huge_pages(cache) else "4 KiB"
        order = "pages in pairs" if cache.dim() == 6 else "pages in columns"
        return f"fastgen/{ops.isa()} on {order} in {memory} memory pages"

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Keep requests' generators from the samples that vLLM throws away.

        After a chunk of a prompt vLLM takes back what its sample drew from the request's
        generator, by the generator's offset. CPU generators have none: it would raise an error.
        """
        batch = self.model_runner.input_batch
        discarded = self.model_runner.discard_request_mask.np
        put_aside = {
            row: batch.generators.pop(row) for row in list(batch.generators) if discarded[row]
        }
        try:
            return super().sample_tokens(grammar_output)
        finally:
            batch.generators.update(put_aside)
