"""Per-head state of compacted requests, in the worker."""

import time

import torch
from torch import Tensor

from fastgen_vllm import ops
from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.geometry import CacheGeometry, HeadField
from fastgen_vllm.integration.messages import CompactionOrder, PlanReport, WorkerReport
from fastgen_vllm.integration.step import DecodeRows, ObservedRows, StepWork
from fastgen_vllm.integration.tracked import Held, TrackedRequest
from fastgen_vllm.lifecycle import CompactionPlan, observed_queries, plan_compaction
from fastgen_vllm.memory import use_huge_pages
from fastgen_vllm.ops.reference import slots_of
from fastgen_vllm.profile.prompt import PromptProfile
from fastgen_vllm.request import RequestOptions


class FastGenRuntime:
    """Profiles prompts, compacts requests and runs their decode attention.

    Args:
        arena: [L, B, H, 2*S, D], vLLM's whole KV cache, strided.
        token_class: [V] int32, TokenClass bits per token id.
        max_requests: most requests that run at once.
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
    ) -> None:
        self._config = config
        self._geometry = geometry
        self._arena = arena
        self._token_class = token_class
        slots = (geometry.num_blocks, geometry.pages_per_block, geometry.block_size)
        self._positions = torch.zeros(slots, dtype=torch.int32)
        self._values = torch.zeros(slots, dtype=torch.float32)
        heads = (max_requests, geometry.num_layers, geometry.num_kv_heads, len(HeadField))
        self._heads = torch.zeros(heads, dtype=torch.int32)
        for tensor in (self._positions, self._values):
            use_huge_pages(tensor)
        self._free_lanes = list(range(max_requests))[::-1]
        self._requests: dict[str, TrackedRequest] = {}
        self._report = WorkerReport()

    @property
    def metadata_bytes(self) -> int:
        """Memory of positions, values and head records."""
        own = (self._positions, self._values, self._heads)
        return sum(tensor.numel() * tensor.element_size() for tensor in own)

    # -- requests come and go --------------------------------------------------------

    def track(self, request_id: str, prompt: list[int], options: RequestOptions) -> None:
        """Start profiling a new request."""
        first = len(prompt) - observed_queries(self._config, len(prompt))
        prompt_class = self._token_class[torch.tensor(prompt)]
        self._requests[request_id] = TrackedRequest(options, prompt_class, first, first)

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
        assert request.plan is not None, f"{order.request_id} has no plan"
        later = torch.tensor(request.later_class, dtype=torch.int32)
        stored = torch.cat([request.prompt_class, later])
        assert len(stored) == order.num_stored, "worker and scheduler count tokens differently"
        copy = request.plan.compact(stored)
        request.size = request.plan.stream.size
        request.plan = None
        request.later_class.clear()
        request.lane = self._free_lanes.pop()
        self._heads[request.lane] = copy.records
        source, old_row = self._arena, torch.tensor(order.old_row)
        if set(order.old_row) & set(order.new_row):
            # The pool was so full that old blocks were handed out again: read from a copy.
            source, old_row = source[:, old_row].contiguous(), torch.arange(len(old_row))
        ops.compact(
            source,
            old_row.int(),
            self._arena,
            torch.tensor(order.new_row, dtype=torch.int32),
            copy.kept,
            copy.kept_start,
            copy.kept_value,
            self._heads[request.lane],
            self._positions,
            self._values,
        )
        self._report.compaction_seconds += time.perf_counter() - start

    def plan_of(self, request_id: str) -> CompactionPlan | None:
        """The plan of a request that will be compacted next; None before and after."""
        request = self._requests.get(request_id)
        return None if request is None else request.plan

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
        row = torch.tensor(block_row)
        return [
            [self._head_positions(record, row) for record in layer]
            for layer in self._heads[request.lane]
        ]

    def _head_positions(self, record: Tensor, block_row: Tensor) -> list[int]:
        where = slots_of(self._arena, block_row, record)
        return sorted(self._positions[where].tolist())

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
        for row, request_id in enumerate(request_ids):
            request = self._requests.get(request_id)
            if request is None:
                continue
            if request.lane is not None:
                decoding.append(row)
                continue
            begin, end = query_start[row], query_start[row + 1]
            first = seq_lens[row] - (end - begin)
            if seq_lens[row] > request.num_prompt:
                skipped = max(0, request.num_prompt - first)
                later = self._token_class[input_ids[begin + skipped : end].long()]
                request.later_class += later.tolist()
            rows = self._observe_rows(request_id, first, begin, seq_lens[row], block_table[row])
            if rows is not None:
                observed.append(rows)
        if not observed and not decoding:
            return None
        decode = None
        if decoding:
            token_index = torch.tensor([query_start[row] for row in decoding])
            lanes = [self._requests[request_ids[row]].lane for row in decoding]
            decode = DecodeRows(
                rows=torch.tensor(decoding),
                token_index=token_index,
                lanes=torch.tensor(lanes, dtype=torch.int32),
                block_rows=block_table[decoding].contiguous(),
                token_position=torch.tensor(
                    [seq_lens[row] - 1 for row in decoding], dtype=torch.int32
                ),
                token_class=self._token_class[input_ids[token_index].long()],
            )
        return StepWork(observed, decode, only_decode=len(decoding) == len(request_ids))

    def _observe_rows(
        self, request_id: str, first: int, begin: int, seq_len: int, block_row: Tensor
    ) -> ObservedRows | None:
        """Return the observed queries among positions ``first .. seq_len - 1``."""
        request = self._requests[request_id]
        low = max(first, request.observed_from)
        high = min(seq_len, request.num_prompt)
        if low >= high or request.plan is not None:
            return None
        if low != request.next_observed:
            self.release(request_id)
            self._report.unobserved.append(request_id)
            return None
        if request.attention is None:
            shape = (self._geometry.num_layers, self._geometry.num_kv_heads, request.num_prompt)
            request.attention = torch.zeros(shape, dtype=torch.float32)
            request.energy = torch.zeros(shape, dtype=torch.float32)
        assert request.energy is not None
        request.next_observed = high
        request.prompt_row = block_row
        return ObservedRows(
            request.attention,
            request.energy,
            begin + low - first,
            begin + high - first,
            low,
            block_row,
        )

    def observe(self, layer: int, query: Tensor, scale: float, work: StepWork) -> None:
        """Add the observed queries' attention in one layer.

        Args:
            query: [T, H*G, D], after rotary embedding; keys are already on stock pages.
        """
        start = time.perf_counter()
        for rows in work.observed:
            ops.attention_mass(
                query[rows.begin : rows.end],
                self._arena,
                layer,
                rows.block_row,
                rows.first_position,
                scale,
                self._config.pool,
                rows.attention[layer],
                rows.energy[layer],
            )
        self._report.profiling_seconds += time.perf_counter() - start

    def decode(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        scale: float,
        rows: DecodeRows,
    ) -> None:
        """Store the new tokens of compacted requests and attend to their own pages.

        Args:
            query, output: [T, H*G, D].
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
        ops.decode_attention(
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
        norm = torch.empty(self._geometry.num_layers, self._geometry.num_kv_heads, num_tokens)
        ops.value_norm(self._arena, block_row, norm)
        return norm

    def finish_step(self) -> WorkerReport | None:
        """Choose policies for prompts whose last observed query has passed; report."""
        start = time.perf_counter()
        for request_id, request in self._requests.items():
            if request.attention is None or request.next_observed < request.num_prompt:
                continue
            assert request.energy is not None and request.prompt_row is not None
            profile = PromptProfile(
                request.attention,
                request.energy,
                self._value_norm(request.prompt_row, request.num_prompt),
                request.prompt_class,
                request.num_prompt - request.observed_from,
            )
            plan = plan_compaction(profile, self._config, request.options, self._geometry)
            request.plan = plan
            request.attention = request.energy = request.prompt_row = None
            self._report.plans.append(
                PlanReport(request_id, plan.stream.size, plan.kept_share, plan.choice.counts())
            )
        report = self._report
        report.profiling_seconds += time.perf_counter() - start
        if not (report.plans or report.unobserved or report.compaction_seconds):
            return None  # what it took goes with the next report
        self._report = WorkerReport()
        return report
