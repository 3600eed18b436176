"""The scheduler's side of compaction.

When a worker reports a plan, the request waits here until the next ``schedule()`` in which
compaction gives back blocks that somebody needs (or at once, ``when: always``). Then its blocks are
swapped, the copy is ordered on the step's message and the old blocks go back. Until then the
request decodes through the stock path.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.integration.cache import PerHeadManager
from fastgen_vllm.integration.metrics import STATS_KEY, FastGenStats
from fastgen_vllm.integration.options import config_of, wants_metrics
from fastgen_vllm.integration.progress import RequestProgress
from fastgen_vllm.integration.summary import RequestSummary
from fastgen_vllm.pages.size import StreamSize, cdiv
from fastgen_vllm.profile.observation import Observation, may_replay
from fastgen_vllm.profile.replay import whole_blocks
from fastgen_vllm.request import RequestOptions
from fastgen_vllm.runtime.inspection import external_id
from fastgen_vllm.runtime.messages import (
    CompactionOrder,
    PromptEnd,
    StepOrders,
    Uncompacted,
    WorkerReport,
)


class PerHeadScheduling(Scheduler):
    """Adds the compaction protocol to a vLLM scheduler."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fastgen: FastGenConfig = config_of(self.vllm_config)
        managers = self.kv_cache_manager.coordinator.single_type_managers
        manager = managers[0] if len(managers) == 1 else None
        #: None: this model's cache cannot be compressed and the user chose to serve it so
        self._manager = manager if isinstance(manager, PerHeadManager) else None
        self._progress: dict[str, RequestProgress] = {}
        if self._manager is not None and may_replay(self._fastgen):
            self._manager.replayed = self._replayed
        #: requests whose plan waits to be carried out, oldest first
        self._pending: dict[str, Request] = {}
        self._declined: list[str] = []
        #: how often a request gave up blocks that others may have read too
        self._departures = 0
        self._send_stats = wants_metrics(self.vllm_config)
        #: since statistics were last sent
        self.stats = FastGenStats()

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        if self._manager is None:
            return super().schedule(throttle_prefills)
        compactions = self._compact_pending(self._manager)
        output = super().schedule(throttle_prefills)
        preempted = output.preempted_req_ids or ()
        orders = StepOrders(
            compactions=[order for order in compactions if order.request_id not in preempted],
            declined=self._declined,
            profiled=[
                new.req_id
                for new in output.scheduled_new_reqs
                if self._progress[new.req_id].is_profiled
            ],
            ends=self._ends(output, self._manager),
        )
        for order in orders.compactions:
            self.stats.compactions += 1
            self.stats.blocks_given_back += self._progress[order.request_id].given_back
        output.kv_connector_metadata = orders
        self._declined = []
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        connector_output = model_runner_output.kv_connector_output
        report = connector_output.kv_connector_worker_meta if connector_output else None
        if isinstance(report, WorkerReport) and self._manager is not None:
            self._receive(report)
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        return outputs

    @property
    def _is_alone(self) -> bool:
        """Whether a request is compressed as if there were no others."""
        return self._fastgen.shared_prefix == "compress"

    def _replayed(self, request_id: str, num_computed: int) -> range:
        positions = self._progress[request_id].replayed(num_computed)
        # What the end of a prompt got depends on where that is.
        return range(positions.start, whole_blocks(positions.stop)) if self._is_alone else positions

    def _ends(self, output: SchedulerOutput, manager: PerHeadManager) -> dict[str, PromptEnd]:
        """What the blocks are of every profiled prompt that ends in this step."""
        ends: dict[str, PromptEnd] = {}
        for request_id in output.num_scheduled_tokens:
            progress = self._progress[request_id]
            if self._is_alone or not progress.awaits_plan:
                continue
            request = self.requests[request_id]
            if request.num_computed_tokens >= request.num_prompt_tokens:
                ends[request_id] = PromptEnd(
                    # Something is left to choose from.
                    manager.num_shared(request_id, request.num_prompt_tokens - 1),
                    manager.unasked(request_id, progress.found),
                )
        return ends

    def _receive(self, report: WorkerReport) -> None:
        self.stats.profiling_seconds += report.profiling_seconds
        self.stats.compaction_seconds += report.compaction_seconds
        for request_id, reason in report.without_plan.items():
            if (progress := self._progress.get(request_id)) is not None:
                progress.settle(reason)
        for plan in report.plans:
            request = self.requests.get(plan.request_id)
            # With async scheduling the request may have ended or been preempted since.
            if request is None or request.num_preemptions != plan.preemptions:
                continue
            progress = self._progress[plan.request_id]
            progress.receive(plan)
            self.stats.observe_plan(plan)
            if self._may_save(request, plan.size):
                self._pending[plan.request_id] = request
            else:
                self._declined.append(plan.request_id)
                progress.settle(Uncompacted.NO_SAVING)

    def _compact_pending(self, manager: PerHeadManager) -> list[CompactionOrder]:
        """Compact requests whose plans give back blocks; patient ones while blocks are missing."""
        orders = []
        patient = []
        for request_id, request in list(self._pending.items()):
            progress = self._progress[request_id]
            if request.is_prefill_chunk and request.num_computed_tokens != progress.compacted_at:
                continue  # what it had generated before a preemption
            if progress.is_patient and progress.compacted_at is None:
                patient.append(request)
            elif (reason := self._reason_to_wait(request, manager)) is not None:
                progress.wait(reason)
            else:
                orders.append(self._compact(request, manager))
        if patient:
            orders += self._make_room(patient, manager)
        return orders

    def _make_room(
        self, candidates: Sequence[Request], manager: PerHeadManager
    ) -> list[CompactionOrder]:
        """Compact as many as are needed, those first that give back most."""
        orders = []
        missing, needs = 0, self._needs(manager)

        def is_short() -> bool:
            nonlocal missing
            while missing <= manager.num_free() and (need := next(needs, None)) is not None:
                missing += need
            return missing > manager.num_free()

        if is_short():
            candidates = sorted(candidates, key=lambda r: self._saved(r, manager), reverse=True)
        for request in candidates:
            reason = self._reason_to_wait(request, manager) if is_short() else Uncompacted.ROOM
            if reason is None:
                orders.append(self._compact(request, manager))
            else:
                self._progress[request.request_id].wait(reason)
        return orders

    def _needs(self, manager: PerHeadManager) -> Iterator[int]:
        """Blocks that are needed now: by all that run, then by each that could begin to."""
        yield sum(
            manager.num_missing(
                request.request_id, request.num_tokens_with_spec + request.num_output_placeholders
            )
            for request in self.running
        )
        could_begin = self.max_num_running_reqs - len(self.running)
        for request in islice(self.waiting, could_begin):
            yield cdiv(request.num_tokens, self.block_size) - manager.num_in_use(request)

    def _compact(self, request: Request, manager: PerHeadManager) -> CompactionOrder:
        """Swap a request's blocks for its page stream."""
        request_id, num_stored = request.request_id, request.num_computed_tokens
        progress = self._progress[request_id]
        size, free = progress.size, manager.num_free()
        old, new = manager.compact(request_id, size, num_stored)
        del self._pending[request_id]
        # None for a request that is forced to take more.
        progress.compact(num_stored, given_back=max(0, manager.num_free() - free))
        self._departures += 1
        return CompactionOrder(
            *(request_id, request.num_preemptions, old, new, num_stored),
            num_stay=size.stock_blocks,
        )

    def _may_save(self, request: Request, size: StreamSize) -> bool:
        """Whether compaction could give back a block now or when the request is longer."""
        longest = min(request.num_prompt_tokens + request.max_tokens, self.max_model_len)
        # Heads with slack may come to need more than a request's row has room for.
        fits = size.blocks(longest) <= cdiv(self.max_model_len, self.block_size)
        saves = size.blocks(longest) < cdiv(longest, self.block_size)
        return fits and (saves or self._fastgen.force)

    def _saved(self, request: Request, manager: PerHeadManager) -> int:
        """Blocks that the pool would have more if the request were compacted now."""
        size = self._progress[request.request_id].size
        taken = size.blocks(request.num_computed_tokens) - size.stock_blocks
        return manager.num_returned(request.request_id, size.stock_blocks) - taken

    def _reason_to_wait(self, request: Request, manager: PerHeadManager) -> Uncompacted | None:
        """Why a request cannot be compacted now.

        If it saves there is room: it takes less than it returns. The readers of its blocks are
        counted again only when it has more blocks or some reader left: it may wait for long.
        """
        progress = self._progress[request.request_id]
        if self._fastgen.force:
            has_room = manager.num_free() + self._saved(request, manager) >= 0
            return None if has_room else Uncompacted.NO_ROOM
        look = (manager.num_blocks(request.request_id), self._departures)
        if progress.looked_at == look:
            return Uncompacted.NO_SAVING
        if self._saved(request, manager) <= 0:
            progress.looked_at = look
            return Uncompacted.NO_SAVING
        return None

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """Have an answer that goes on after a preemption computed as it was at first.

        vLLM would compute it like a prompt, with attention to all tokens: another K and V, and
        from then on another answer. So: up to the tokens that were stored at its compaction,
        then none until it is compacted again, then one in every step.
        """
        count: int = super()._reserve_prefill_lookahead(
            request, num_computed_tokens, num_new_tokens
        )
        progress = self._progress.get(request.request_id)
        if progress is None or progress.compacted_at is None:
            return count
        if num_computed_tokens < progress.compacted_at:
            return min(count, progress.compacted_at - num_computed_tokens)
        return min(count, 1) if progress.outcome is None else 0

    def _first_progress(self, request: Request) -> RequestProgress:
        """Why the request will stay as it is, or what is asked of its prompt."""
        if request.sampling_params is None or request.prompt_token_ids is None:
            return RequestProgress(Uncompacted.OFF)
        options = RequestOptions.parse(request.sampling_params.extra_args)
        outcome = self._first_outcome(request, options)
        if outcome is not Uncompacted.FINISHED_FIRST:
            return RequestProgress(outcome)
        asked = Observation.of(self._fastgen, options, request.num_prompt_tokens)
        when = options.when or self._fastgen.when
        return RequestProgress(outcome, asked, when == "short" and not self._fastgen.force)

    def _first_outcome(self, request: Request, options: RequestOptions) -> Uncompacted:
        """Why the request will stay as it is, or what to say if it ends before its plan."""
        # The next chunk of a session, and embeddings among tokens, are not supported.
        if request.resumable or request.prompt_embeds is not None or not options.enabled:
            return Uncompacted.OFF
        if request.num_prompt_tokens < self._fastgen.min_prompt:
            return Uncompacted.SHORT
        longest = min(request.max_tokens, self.max_model_len - request.num_prompt_tokens)
        if longest < self._fastgen.min_answer:
            return Uncompacted.SHORT_ANSWER
        return Uncompacted.FINISHED_FIRST

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        """Cap a prefix-cache hit so that queries are computed that have to be asked."""
        blocks, num_hit, boundary, diverged = super()._get_local_prefix_cache_hit(request)
        progress = self._progress.get(request.request_id)
        if self._manager is None or progress is None or not progress.is_profiled:
            return blocks, num_hit, boundary, diverged
        num_replayed = self._manager.num_replayed(blocks.blocks[0])
        usable = progress.usable(num_hit, num_replayed, self.block_size, self._is_alone)
        if num_hit > usable:
            num_hit = usable
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, num_hit)
        progress.found = num_hit
        return blocks, num_hit, boundary, diverged

    def add_request(self, request: Request) -> None:
        # A session's next chunk comes under the id of its first.
        if self._manager is not None and request.request_id not in self.requests:
            self._progress[request.request_id] = self._first_progress(request)
        super().add_request(request)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)
        self._depart(request)
        if (progress := self._progress.get(request.request_id)) is not None:
            progress.preempt()

    def _free_request(
        self, request: Request, delay_free_blocks: bool = False
    ) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        progress = self._progress.pop(request.request_id, None)
        self._depart(request)
        summary = None
        answers = _wants_report(request)
        if progress is not None and self._manager is not None:
            if progress.outcome is not None:
                self.stats.count_uncompacted(progress.outcome)
            if answers or self._fastgen.log_requests:
                summary = self._summary(request, progress, self._manager)
        if summary is not None and self._fastgen.log_requests:
            summary.log(external_id(request.request_id), str(request.get_finished_reason()))
        answer, encoder_answer = super()._free_request(request, delay_free_blocks)
        if summary is not None and answers:
            answer = summary.to_answer()
        return answer, encoder_answer

    def _depart(self, request: Request) -> None:
        """The request gives up its blocks; if it has a plan, nothing comes of it."""
        self._pending.pop(request.request_id, None)
        self._departures += 1

    def _summary(
        self, request: Request, progress: RequestProgress, manager: PerHeadManager
    ) -> RequestSummary:
        plan = progress.plan if progress.outcome is None else None
        return RequestSummary(
            prompt_tokens=request.num_prompt_tokens,
            answer_tokens=request.num_output_tokens,
            kept_share=1.0 if plan is None else plan.kept_share,
            policies={} if plan is None else plan.heads_by_policy,
            blocks=manager.num_blocks(request.request_id),
            blocks_shared=0 if plan is None else plan.size.stock_blocks,
            blocks_uncompressed=cdiv(request.num_computed_tokens, self.block_size),
            preemptions=request.num_preemptions,
            uncompacted_because=None if progress.outcome is None else progress.outcome.value,
        )

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        stats = super().make_stats(*args, **kwargs)
        if stats is not None and self._send_stats and not self.stats.is_empty():
            stats.kv_connector_stats = {STATS_KEY: self.stats.to_dict()}
            self.stats = FastGenStats()
        return stats

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block and every plan is accounted for."""
        if self._manager is None:
            return
        self._manager.check_integrity()
        assert self._progress.keys() == self.requests.keys(), "a request's progress outlived it"
        assert self._pending.keys() <= self._progress.keys(), "a plan outlived its request"
        for request_id, progress in self._progress.items():
            is_compacted = self._manager.is_compacted(request_id)
            assert is_compacted == (progress.outcome is None), f"{request_id}: {progress}"
            assert request_id not in self._pending or progress.plan is not None


def _wants_report(request: Request) -> bool:
    params = request.sampling_params
    return params is not None and RequestOptions.parse(params.extra_args).report


class PerHeadScheduler(PerHeadScheduling):
    """vLLM's scheduler with per-head block tables."""


class PerHeadAsyncScheduler(PerHeadScheduling, AsyncScheduler):
    """vLLM's async scheduler with per-head block tables."""


def make_scheduler(*args: Any, **kwargs: Any) -> PerHeadScheduling:
    """Build the scheduler that fits the engine's final configuration.

    The target of vLLM's ``scheduler_cls``. Whether scheduling is async is decided after that
    option is read (platforms have the last word), so a class path would come too early.
    """
    is_async = kwargs["vllm_config"].scheduler_config.async_scheduling
    return (PerHeadAsyncScheduler if is_async else PerHeadScheduler)(*args, **kwargs)
