"""Cache spec and manager: a compacted request needs as many blocks as its stream says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
from typing import Any

import torch
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec, KVQuantMode
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry
from vllm.v1.request import Request

from fastgen_vllm.pages.size import StreamSize, cdiv


@dataclass(frozen=True, kw_only=True)
class PerHeadSpec(FullAttentionSpec):
    """Full attention whose requests may be compacted to per-head block tables."""

    @classmethod
    def from_full(cls, spec: FullAttentionSpec) -> "PerHeadSpec":
        """Return the same cache, managed per head."""
        return cls(**{f.name: getattr(spec, f.name) for f in fields(spec) if f.init})


def register_spec() -> None:
    """Register :class:`PerHeadSpec` with vLLM. Idempotent.

    vLLM registers its own specs lazily, and only while its registry is empty: so first.
    """
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(PerHeadSpec, PerHeadManager, FullAttentionSpec)


def is_compressible(spec: KVCacheSpec, dtype: torch.dtype) -> bool:
    """Whether a layer's cache is plain full attention, with nothing that we would break.

    Args:
        dtype: the model's, of queries, keys and values.
    """
    return (
        type(spec) is FullAttentionSpec
        and spec.dtype == dtype
        and spec.kv_quant_mode == KVQuantMode.NONE
        and spec.num_head_slots is None
        and spec.state_content_bytes is None
        and spec.tokens_per_state == 1
        and spec.sliding_window is None
        and spec.attention_chunk_size is None
        and not spec.non_causal
        and spec.head_size == spec.head_size_v
        and spec.page_size_padded is None
    )


def describe_cache(spec: KVCacheSpec) -> str:
    """What kind of cache it is, for messages."""
    dtype = str(getattr(spec, "dtype", "")).removeprefix("torch.")
    mode = getattr(spec, "kv_quant_mode", KVQuantMode.NONE)
    quantised = "" if mode == KVQuantMode.NONE else f" quantised as {mode.name}"
    return f"{type(spec).__name__} of {dtype or 'no dtype'}{quantised}"


class PerHeadManager(FullAttentionManager):
    """Block accounting of stock and of compacted requests over one pool."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._streams: dict[str, StreamSize] = {}
        #: blocks beside whose K and V lies what their own queries read when they were replayed
        self._replayed: set[int] = set()
        #: which positions of a request's prompt were replayed when so many are computed
        self.replayed: Callable[[str, int], range] = lambda request_id, num_computed: range(0)

    def is_compacted(self, request_id: str) -> bool:
        """Whether the request's row is a page stream."""
        return request_id in self._streams

    def num_blocks(self, request_id: str) -> int:
        """Blocks that the request holds now."""
        return len(self.req_to_blocks.get(request_id, ()))

    def num_missing(self, request_id: str, num_tokens: int) -> int:
        """Blocks that a running request needs for so many stored tokens and does not hold."""
        size = self._streams.get(request_id)
        needed = size.blocks(num_tokens) if size else cdiv(num_tokens, self.block_size)
        return max(0, needed - self.num_blocks(request_id))

    def num_in_use(self, request: Request) -> int:
        """Blocks of a waiting request's tokens that the prefix cache has and running ones hold."""
        groups = [self.kv_cache_group_id]
        found = (self.block_pool.get_cached_block(key, groups) for key in request.block_hashes)
        return sum(blocks[0].ref_cnt > 0 for blocks in takewhile(bool, found) if blocks)

    def num_returned(self, request_id: str, num_stay: int) -> int:
        """Blocks that come back when the request gives up its row, but for the first ones.

        Those without other readers do.
        """
        return sum(block.ref_cnt == 1 for block in self.req_to_blocks[request_id][num_stay:])

    def num_shared(self, request_id: str, num_tokens: int) -> int:
        """How many first blocks others read, too, of those that are full with so many tokens."""
        row = self.req_to_blocks[request_id][: num_tokens // self.block_size]
        return len(list(takewhile(lambda block: block.ref_cnt > 1, row)))

    def num_free(self) -> int:
        """Blocks that the pool can hand out."""
        return int(self.block_pool.get_num_free_blocks())

    def _note_replayed(self, request_id: str, positions: range) -> None:
        """These queries of a prompt have been replayed, or will be in this step."""
        first, end = cdiv(positions.start, self.block_size), positions.stop // self.block_size
        for block in self.req_to_blocks[request_id][first:end]:
            if block.block_id not in self._replayed:
                self._replayed.add(block.block_id)
                self._prefer(block)

    def _prefer(self, block: KVCacheBlock) -> None:
        """Have the prefix cache find this block before equal ones that were not replayed."""
        cache, key = self.block_pool.cached_block_hash_to_block, block.block_hash
        if key is None or not cache.contain(key, block.block_id):
            return
        while (first := cache.get_one_block(key)).block_id not in self._replayed:
            cache.pop(key, first.block_id)
            cache.insert(key, first)  # behind the others

    def unasked(self, request_id: str, num_tokens: int) -> tuple[int, ...]:
        """Which of the blocks of a request's first tokens hold nothing that a replay left."""
        row = self.req_to_blocks[request_id][: num_tokens // self.block_size]
        return tuple(i for i, block in enumerate(row) if block.block_id not in self._replayed)

    def num_replayed(self, row: Sequence[KVCacheBlock]) -> int:
        """Tokens of a row's first blocks whose queries have been replayed."""
        known = takewhile(lambda block: block.block_id in self._replayed, row)
        return len(list(known)) * int(self.block_size)

    def _take(self, count: int) -> list[KVCacheBlock]:
        """New blocks: nothing of what lies in them counts any more."""
        blocks = list(self.block_pool.get_new_blocks(count))
        self._replayed.difference_update(block.block_id for block in blocks)
        return blocks

    def compact(
        self, request_id: str, size: StreamSize, num_stored: int
    ) -> tuple[list[int], list[int]]:
        """Swap the request's row for a page stream; return (old, new) block ids.

        The first ``size.stock_blocks`` stay, as others read them, or did when it was planned.
        New blocks are taken before old ones go back, as far as the pool has any, so that the
        worker seldom has to write where it reads. The old blocks keep their prefix-cache hashes.
        They may be handed out again in the same step: the worker copies before it computes.
        """
        old, pool = self.req_to_blocks[request_id], self.block_pool
        stay, go = old[: size.stock_blocks], old[size.stock_blocks :]
        needed = size.blocks(num_stored) - len(stay)
        new = self._take(min(needed, self.num_free()))
        pool.free_blocks(reversed(go))
        new = stay + new + self._take(needed - len(new))
        self.req_to_blocks[request_id] = new
        self._streams[request_id] = size
        return [block.block_id for block in old], [block.block_id for block in new]

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        total_computed_tokens: int,
        num_local_computed_tokens: int,
        num_tokens_main_model: int,
        apply_admission_cap: bool = False,
        prefill_end: int = 0,
    ) -> int:
        if self.is_compacted(request_id):
            return self.num_missing(request_id, num_tokens)
        needed: int = super().get_num_blocks_to_allocate(
            request_id,
            num_tokens,
            new_computed_blocks,
            total_computed_tokens,
            num_local_computed_tokens,
            num_tokens_main_model,
            apply_admission_cap,
            prefill_end,
        )
        return needed

    def allocate_new_blocks(
        self, request_id: str, num_tokens: int, num_tokens_main_model: int
    ) -> list[KVCacheBlock]:
        if not self.is_compacted(request_id):
            new = super().allocate_new_blocks(request_id, num_tokens, num_tokens_main_model)
            self._replayed.difference_update(block.block_id for block in new)
            return list(new)
        if not (missing := self.num_missing(request_id, num_tokens)):
            return []
        blocks = self._take(missing)
        self.req_to_blocks[request_id].extend(blocks)
        return blocks

    def cache_blocks(
        self,
        request: Request,
        num_tokens: int,
        retention_interval: int | None = None,
        *,
        replay_boundaries: Sequence[int],
    ) -> None:
        if self.is_compacted(request.request_id):
            return
        super().cache_blocks(
            request, num_tokens, retention_interval, replay_boundaries=replay_boundaries
        )
        if positions := self.replayed(request.request_id, num_tokens):
            self._note_replayed(request.request_id, positions)

    def pop_blocks_for_free(self, request_id: str) -> list[KVCacheBlock]:
        self._streams.pop(request_id, None)
        return list(super().pop_blocks_for_free(request_id))

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block of the pool is accounted for.

        Each block's reference count equals the rows it stands in; a compacted request's
        blocks, but for those that stayed, are its own and carry no prefix-cache hash; free and used
        blocks are all.
        """
        pool = self.block_pool
        references: dict[int, int] = {}
        for request_id, row in self.req_to_blocks.items():
            size = self._streams.get(request_id)
            for index, block in enumerate(row):
                references[block.block_id] = references.get(block.block_id, 0) + 1
                if size is not None and index >= size.stock_blocks:
                    assert block.block_hash is None, f"{block} of a compacted request is cached"
                    assert block.ref_cnt == 1, f"{block} of a compacted request is shared"
        for block in pool.blocks:
            if not block.is_null:
                expected = references.get(block.block_id, 0)
                assert block.ref_cnt == expected, f"{block} stands in {expected} rows"
        # One block of the pool is vLLM's null block, which is never handed out.
        assert pool.get_num_free_blocks() + len(references) == pool.num_gpu_blocks - 1
        assert self._streams.keys() <= self.req_to_blocks.keys()
