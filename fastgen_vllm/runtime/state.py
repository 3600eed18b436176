"""Per-head state of compacted requests, in the worker."""

import logging
import time
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from fastgen_vllm import ops
from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.geometry import CacheGeometry, HeadField
from fastgen_vllm.lifecycle import head_weights, plan_compaction
from fastgen_vllm.memory import use_huge_pages
from fastgen_vllm.pages import stock_records
from fastgen_vllm.pages.fold import locate
from fastgen_vllm.pages.size import cdiv
from fastgen_vllm.policy.checked import PolicyError
from fastgen_vllm.profile.observation import Observation
from fastgen_vllm.profile.prompt import PromptProfile
from fastgen_vllm.profile.replay import Rotation
from fastgen_vllm.request import RequestOptions
from fastgen_vllm.runtime.inspection import ExpectedPlans, HeadTotals
from fastgen_vllm.runtime.messages import (
    CompactionOrder,
    PlanReport,
    PromptEnd,
    Uncompacted,
    WorkerReport,
)
from fastgen_vllm.runtime.replayer import Replayer
from fastgen_vllm.runtime.step import DecodeRows, ObservedRows, StepWork
from fastgen_vllm.runtime.tracked import Held, TrackedRequest

logger = logging.getLogger("vllm.fastgen")


class FastGenRuntime:
    """Profiles prompts, compacts requests and runs their decode attention.

    All of its tensors are on the device of the cache. In a step without a prompt that ends and
    without a compaction the host reads none of them.

    Args:
        arena: vLLM's whole KV cache as the ops take it: [L, B, H, 2*S, D] on the CPU,
            or [L, B, H, 2*S, D/2, 2] in pairs, [L, B, H, S, 2*D] on CUDA, strided.
        token_class: [V] int32, TokenClass bits per token id.
        max_requests: most requests that run at once.
        decode_attention: the op of that name, or one with its signature and effects.
        pin_memory: whether numbers for the device go there from pinned memory.
        rotation: how queries are turned that are replayed; needed for ``observe: replay``.
    """

    #: Position and value of a slot.
    SLOT_BYTES = 8

    @staticmethod
    def record_bytes(num_heads: int, max_requests: int) -> int:
        """Memory of the head records, for ``L*H`` heads."""
        return max_requests * num_heads * len(HeadField) * 4

    def __init__(
        self,
        config: FastGenConfig,
        geometry: CacheGeometry,
        arena: Tensor,
        token_class: Tensor,
        max_requests: int,
        decode_attention: Callable[..., None],
        pin_memory: bool = False,
        rotation: Rotation | None = None,
    ) -> None:
        self._config = config
        self._geometry = geometry
        self._arena = arena
        self._device = arena.device
        self._decode_attention = decode_attention
        self._pin_memory = pin_memory
        self._token_class = token_class.to(self._device)
        slots = (geometry.num_blocks, geometry.pages_per_block, geometry.block_size)
        heads = (max_requests, geometry.num_layers, geometry.num_kv_heads, len(HeadField))
        with self._device:
            self._positions = torch.zeros(slots, dtype=torch.int32)
            self._values = torch.zeros(slots, dtype=torch.float32)
            self._heads = torch.zeros(heads, dtype=torch.int32)
            self._stock_heads = stock_records(geometry.num_layers, geometry.num_kv_heads)
            self._head_weight = head_weights(config, geometry)
        for tensor in (self._positions, self._values):
            use_huge_pages(tensor)
        self._replayer = None
        if rotation is not None:
            self._replayer = Replayer(arena, self._stock_heads, self._values, config.pool, rotation)
        self._free_lanes = list(range(max_requests))[::-1]
        self._requests: dict[str, TrackedRequest] = {}
        self._report = WorkerReport()
        #: for people to look at
        self.head_totals = HeadTotals(geometry, self._device)
        self.expected_plans = ExpectedPlans()

    @property
    def metadata_bytes(self) -> int:
        """Memory of positions, values and head records."""
        own = (self._positions, self._values, self._heads)
        return sum(tensor.numel() * tensor.element_size() for tensor in own)

    # -- requests come and go --------------------------------------------------------

    def track(self, request_id: str, prompt: list[int], options: RequestOptions) -> None:
        """Start profiling a new request."""
        observation = Observation.of(self._config, options, len(prompt))
        assert self._replayer is not None or not observation.is_replay
        prompt_class = self._token_class[self._to_device(prompt, torch.int64)]
        self._requests[request_id] = TrackedRequest(options, observation, prompt_class)

    def end_prompt(self, request_id: str, end: PromptEnd) -> None:
        """Note what the blocks are of a prompt that ends in this step."""
        if (request := self._requests.get(request_id)) is not None:
            request.stock_blocks, request.unasked = end

    def release(self, request_id: str) -> None:
        """Forget a request that finished or will not be compacted."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            self._free_lane(request)

    def restart(self, request_id: str) -> None:
        """Profile a preempted request again when it comes back."""
        request = self._requests.get(request_id)
        if request is not None:
            self._free_lane(request)
            request.restart()

    def _free_lane(self, request: TrackedRequest) -> None:
        if request.lane is not None:
            self._free_lanes.append(request.lane)

    def compact(self, order: CompactionOrder) -> None:
        """Copy a request's kept tokens into its page stream."""
        start = time.perf_counter()
        request = self._requests[order.request_id]
        assert request.prepared is not None, f"{order.request_id} has no plan"
        assert order.preemptions == request.preemptions, "the order is for another plan"
        size = request.prepared.stream.size
        assert size.blocks(order.num_stored) == len(order.new_row), "the plan needs another row"
        later = self._later_class(order.old_row, request.num_prompt, order.num_stored)
        stored = torch.cat([request.prompt_class, later])
        with self._device:
            copy = request.prepared.copy(stored)
        request.size, request.prepared = size, None
        request.lane = self._free_lanes.pop()
        self._heads[request.lane] = copy.records
        saved, old_row = self._save(order)
        ops.compact(
            self._arena,
            old_row,
            self._stock_heads,
            saved,
            self._to_device(order.new_row, torch.int32),
            copy.kept,
            copy.kept,
            copy.kept_start,
            copy.kept_value,
            self._heads[request.lane],
            self._positions,
            self._values,
        )
        self._report.compaction_seconds += time.perf_counter() - start

    def _later_class(self, row: list[int], num_prompt: int, num_stored: int) -> Tensor:
        """[num_stored - num_prompt] int32, classes of what was generated on a stock row."""
        slots = self._geometry.block_size
        first = num_prompt // slots
        blocks = self._to_device(row[first : cdiv(num_stored, slots)], torch.int64)
        classes = self._positions[blocks, 0].flatten()
        return classes[num_prompt - first * slots : num_stored - first * slots]

    def _save(self, order: CompactionOrder) -> tuple[Tensor, Tensor]:
        """Copy old blocks that are new ones too; the old row then names the copies.

        There are none unless the pool was so full that old blocks were handed out again.
        """
        both = sorted(set(order.old_row[order.num_stay :]) & set(order.new_row[order.num_stay :]))
        saved = self._arena[:, :0]
        if both:
            saved = self._arena.index_select(1, self._to_device(both, torch.int32))
        copy_of = {block: self._geometry.num_blocks + i for i, block in enumerate(both)}
        old_row = [copy_of.get(block, block) for block in order.old_row]
        return saved, self._to_device(old_row, torch.int32)

    def planned(self, request_id: str) -> PlanReport | None:
        """What was planned for a request's prompt, until the request ends or is not compacted."""
        request = self._requests.get(request_id)
        return None if request is None else request.planned

    @property
    def geometry(self) -> CacheGeometry:
        """Shape of the cache."""
        return self._geometry

    def is_compacted(self, request_id: str) -> bool:
        """Whether the request decodes over a page stream."""
        request = self._requests.get(request_id)
        return request is not None and request.lane is not None

    def held_by(self, request_id: str, num_tokens: int) -> Held | None:
        """What a compacted request of so many stored tokens holds; None for another one."""
        request = self._requests.get(request_id)
        if request is None or request.size is None:
            return None
        length = self._heads[request.lane, ..., HeadField.LENGTH]
        return Held(slots=int(length.sum()), pages=request.size.pages(num_tokens))

    def kept_positions(self, request_id: str, block_row: list[int]) -> list[list[list[int]]]:
        """Positions that every head of a compacted request holds now, ``[L][H]``, sorted.

        Reads the page stream itself, so tests see what attention sees.
        """
        request = self._requests[request_id]
        assert request.lane is not None, f"{request_id} is not compacted"
        row = self._to_device(block_row, torch.int64)
        return [
            [self._head_positions(record, row) for record in layer]
            for layer in self._heads[request.lane]
        ]

    def _head_positions(self, record: Tensor, block_row: Tensor) -> list[int]:
        slots = torch.arange(int(record[HeadField.LENGTH]), device=self._device)
        _, per_block, page_slots = self._positions.shape
        where = locate(slots, record, block_row, per_block, page_slots)
        is_stock = slots < record[HeadField.STOCK_PAGES] * page_slots
        return sorted(torch.where(is_stock, slots, self._positions[where]).tolist())

    def _to_device(
        self, values: Sequence[int] | Sequence[Sequence[int]], dtype: torch.dtype
    ) -> Tensor:
        """Copy numbers to the device without waiting for what it is doing."""
        host = torch.tensor(values, dtype=dtype, pin_memory=self._pin_memory)
        return host.to(self._device, non_blocking=True)

    # -- one step ----------------------------------------------------------------------

    def plan_step(
        self,
        request_ids: list[str],
        query_start: list[int],
        seq_lens: list[int],
        block_table: Tensor,
        input_ids: Tensor,
    ) -> StepWork | None:
        """Sort the rows of a step's batch.

        Args:
            request_ids: R requests, in batch order.
            query_start: R + 1 token indices.
            seq_lens: stored tokens of each request after this step.
            block_table: [R, M] int32.
            input_ids: [T] token ids of the batch.

        Returns:
            What to do in every layer, or None if all rows are stock rows and unobserved.
        """
        observed: list[ObservedRows] = []
        decoding: list[int] = []
        generated: list[tuple[int, int, int]] = []  # row, position, token of the batch
        for row, request_id in enumerate(request_ids):
            request = self._requests.get(request_id)
            if request is None:
                continue
            if request.lane is not None:
                decoding.append(row)
                continue
            begin, end = query_start[row], query_start[row + 1]
            first = seq_lens[row] - (end - begin)
            for position in range(max(first, request.num_prompt), seq_lens[row]):
                generated.append((row, position, begin + position - first))
            rows = self._observe_rows(request_id, first, begin, seq_lens[row], block_table[row])
            if rows is not None:
                observed.append(rows)
        if generated:
            # A slot of a stock row needs no position: there the class of its token waits.
            row_of, position_of, token_of = self._to_device(generated, torch.int64).T
            slots = self._geometry.block_size
            block = block_table[row_of, position_of // slots].long()
            token_class = self._token_class[input_ids[token_of].long()]
            self._positions[block, 0, position_of % slots] = token_class
        if not observed and not decoding:
            return None
        decode = None
        if decoding:
            starts = [query_start[row] for row in decoding]
            lanes = [self._lane_of(request_ids[row]) for row in decoding]
            last = [seq_lens[row] - 1 for row in decoding]
            rows, token_index = self._to_device([decoding, starts], torch.int64)
            lane, position = self._to_device([lanes, last], torch.int32)
            decode = DecodeRows(
                rows=rows,
                token_index=token_index,
                lanes=lane,
                block_rows=block_table.index_select(0, rows),
                token_position=position,
                token_class=self._token_class[input_ids[token_index].long()],
            )
        return StepWork(observed, decode, only_decode=len(decoding) == len(request_ids))

    def _lane_of(self, request_id: str) -> int:
        lane = self._requests[request_id].lane
        assert lane is not None
        return lane

    def _observe_rows(
        self, request_id: str, first: int, begin: int, seq_len: int, block_row: Tensor
    ) -> ObservedRows | None:
        """Return the observed queries among positions ``first .. seq_len - 1``."""
        request = self._requests[request_id]
        low = max(first, request.observation.first_asked)
        high = min(seq_len, request.num_prompt)
        if low >= high or request.planned is not None:
            return None
        replayer = self._replayer if request.observation.is_replay else None
        if replayer is not None and request.attention is None:
            request.start(low)  # what is before was found in the prefix cache
        if low != request.next_observed:
            self.release(request_id)
            self._report.without_plan[request_id] = Uncompacted.UNOBSERVED
            return None
        if request.attention is None:
            shape = (self._geometry.num_layers, self._geometry.num_kv_heads, request.num_prompt)
            request.attention = torch.zeros(shape, dtype=torch.float32, device=self._device)
            request.energy = torch.zeros(shape, dtype=torch.float32, device=self._device)
        assert request.energy is not None
        request.next_observed = high
        request.prompt_row = block_row
        if replayer is not None:
            replayer.clear(request, block_row, low, high)
        return ObservedRows(
            request.attention,
            request.energy,
            begin + low - first,
            begin + high - first,
            low,
            block_row,
            request.observation,
            request.waiting,
        )

    def observe(
        self,
        layer: int,
        query: Tensor,
        scale: float,
        work: StepWork,
        strict: bool = False,
        reader: Hashable = None,
    ) -> None:
        """Add the observed queries' attention to one layer's K.

        Args:
            query: [T, H*G, D], after rotary embedding; keys are already on stock pages.
            strict: no query sees its own token. Replayed from behind, all see all.
            reader: whose queries they are, where several layers read one layer's K.
        """
        start = time.perf_counter()
        for rows in work.observed:
            if rows.observation.is_replay:
                assert self._replayer is not None
                asked = query[rows.begin : rows.end]
                self._replayer.replay(layer, asked, scale, rows, (layer, reader))
                continue
            begin, first = rows.begin, rows.first_position
            if strict:
                sees_nothing = first == 0
                begin, first = begin + sees_nothing, first - 1 + sees_nothing
                if begin == rows.end:
                    continue
            ops.attention_mass(
                query[begin : rows.end],
                self._arena,
                layer,
                rows.block_row,
                self._stock_heads,
                first,
                scale * rows.observation.sharpness,
                self._config.pool,
                rows.attention[layer],
                rows.energy[layer],
            )
        self._report.profiling_seconds += time.perf_counter() - start

    def store(self, layer: int, key: Tensor, value: Tensor, rows: DecodeRows) -> None:
        """Store the new tokens of compacted requests.

        Args:
            key, value: [T, H, D].
        """
        ops.store(
            key,
            value,
            rows.token_index,
            rows.lanes,
            rows.block_rows,
            rows.token_position,
            rows.token_class,
            layer,
            self._arena,
            self._heads,
            self._positions,
            self._values,
        )

    def attend(
        self, layer: int, query: Tensor, output: Tensor, scale: float, rows: DecodeRows
    ) -> None:
        """Attend to what compacted requests have stored, each head to its own pages.

        Args:
            query, output: [T, H*G, D].
        """
        self._decode_attention(
            query,
            rows.token_index,
            rows.lanes,
            rows.block_rows,
            layer,
            scale,
            self._config.pool,
            self._arena,
            self._heads,
            self._values,
            output,
        )

    def _value_norm(self, block_row: Tensor, num_tokens: int) -> Tensor:
        """[L, H, N] float32, norms of the values on stock pages."""
        shape = (self._geometry.num_layers, self._geometry.num_kv_heads, num_tokens)
        norm = torch.empty(shape, dtype=torch.float32, device=self._device)
        ops.value_norm(self._arena, block_row, self._stock_heads, norm)
        return norm

    def finish_step(self) -> WorkerReport | None:
        """Choose policies for prompts whose last observed query has passed; report."""
        start = time.perf_counter()
        for request_id, request in list(self._requests.items()):
            if request.attention is None or request.next_observed < request.num_prompt:
                continue
            assert request.energy is not None and request.prompt_row is not None
            is_replay = request.observation.is_replay
            energy = request.energy
            if is_replay:
                assert self._replayer is not None
                energy = self._replayer.energy(request)
            profile = PromptProfile(
                request.attention,
                energy,
                self._value_norm(request.prompt_row, request.num_prompt),
                request.prompt_class,
                request.num_observed,
                is_replay,
                self._head_weight,
            )
            try:
                with self._device:  # where policies and plans make their tensors
                    plan = plan_compaction(
                        *(profile, self._config, request.options, self._geometry),
                        request.stock_blocks,
                    )
            except PolicyError as error:
                logger.error("FastGen: %s: served uncompressed.", error, exc_info=error.__cause__)
                self.release(request_id)
                self._report.without_plan[request_id] = Uncompacted.POLICY_FAILED
                continue
            with self._device:
                request.prepared = plan.prepare()
            request.attention = request.energy = request.prompt_row = None
            request.planned = PlanReport(
                request_id,
                request.preemptions,
                plan.stream.size,
                plan.kept_share,
                plan.choice.counts(),
            )
            self._report.plans.append(request.planned)
            self.head_totals.add(plan)
            self.expected_plans.note(request_id, plan)
        report = self._report
        report.profiling_seconds += time.perf_counter() - start
        if not (report.plans or report.without_plan or report.compaction_seconds):
            return None  # what it took goes with the next report
        self._report = WorkerReport()
        return report
