"""The scheduler's side of compaction.

When a worker reports a plan, the request waits here until the next ``schedule()`` in which
the pool has room for its page stream. Then its blocks are swapped, the copy is ordered on
the step's message and the old blocks go back. Until then, and if the plan saves nothing,
the request decodes through the stock path.
"""

from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.integration.cache import PerHeadManager
from fastgen_vllm.integration.inspection import external_id
from fastgen_vllm.integration.messages import (
    CompactionOrder,
    PlanReport,
    StepOrders,
    Uncompacted,
    WorkerReport,
)
from fastgen_vllm.integration.metrics import STATS_KEY, FastGenStats
from fastgen_vllm.integration.options import config_of, wants_metrics
from fastgen_vllm.integration.summary import RequestSummary
from fastgen_vllm.lifecycle import is_profiled, observed_queries
from fastgen_vllm.pages.size import cdiv
from fastgen_vllm.request import RequestOptions


class PerHeadScheduling(Scheduler):
    """Adds the compaction protocol to a vLLM scheduler."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fastgen: FastGenConfig = config_of(self.vllm_config)
        managers = self.kv_cache_manager.coordinator.single_type_managers
        manager = managers[0] if len(managers) == 1 else None
        #: None: this model's cache cannot be compressed and the user chose to serve it so
        self._manager = manager if isinstance(manager, PerHeadManager) else None
        self._pending: dict[str, PlanReport] = {}
        self._plans: dict[str, PlanReport] = {}  # of compacted requests
        self._uncompacted: dict[str, Uncompacted] = {}
        self._declined: list[str] = []
        self._send_stats = wants_metrics(self.vllm_config)
        #: since statistics were last sent
        self.stats = FastGenStats()

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        if self._manager is None:
            return super().schedule(throttle_prefills)
        compactions = self._compact_pending(self._manager)
        output = super().schedule(throttle_prefills)
        preempted = output.preempted_req_ids or ()
        output.kv_connector_metadata = StepOrders(
            compactions=[order for order in compactions if order.request_id not in preempted],
            declined=self._declined,
        )
        self._declined = []
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        connector_output = model_runner_output.kv_connector_output
        report = connector_output.kv_connector_worker_meta if connector_output else None
        if isinstance(report, WorkerReport) and self._manager is not None:
            self._receive(report, self._manager)
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        return outputs

    def _receive(self, report: WorkerReport, manager: PerHeadManager) -> None:
        self.stats.profiling_seconds += report.profiling_seconds
        self.stats.compaction_seconds += report.compaction_seconds
        for request_id, reason in report.without_plan.items():
            if request_id in self.requests:
                self._uncompacted[request_id] = reason
        for plan in report.plans:
            request = self.requests.get(plan.request_id)
            # With async scheduling the request may have ended, been preempted, or even been
            # compacted by an equal plan from before a preemption.
            if request is None or request.status != RequestStatus.RUNNING:
                continue
            if manager.is_compacted(plan.request_id):
                continue
            self._pending[plan.request_id] = plan
            self._uncompacted[plan.request_id] = Uncompacted.NO_ROOM
            self.stats.observe_plan(plan)

    def _compact_pending(self, manager: PerHeadManager) -> list[CompactionOrder]:
        """Swap the blocks of every request whose plan pays and for which there is room."""
        orders = []
        for request_id, plan in list(self._pending.items()):
            size = plan.size
            request = self.requests.get(request_id)
            if request is None or request.status != RequestStatus.RUNNING:
                del self._pending[request_id]  # a preempted request is profiled again
                continue
            if request.is_prefill_chunk:
                continue
            num_stored = request.num_computed_tokens
            saves = size.blocks(num_stored) < manager.num_blocks(request_id)
            # Forced, heads with slack may come to need more than a request's row has room for.
            longest = min(request.num_prompt_tokens + request.max_tokens, self.max_model_len)
            fits = size.blocks(longest) <= cdiv(self.max_model_len, self.block_size)
            if not fits or not (saves or self._fastgen.force):
                del self._pending[request_id]
                self._declined.append(request_id)
                self._uncompacted[request_id] = Uncompacted.NO_SAVING
                continue
            if not manager.can_compact(request_id, size, num_stored):
                continue
            old, new = manager.compact(request_id, size, num_stored)
            orders.append(CompactionOrder(request_id, old, new, num_stored))
            self._plans[request_id] = self._pending.pop(request_id)
            self._uncompacted.pop(request_id, None)
            self.stats.compactions += 1
            self.stats.blocks_given_back += len(old) - len(new)
        return orders

    def _outcome(self, request: Request) -> Uncompacted:
        """Why the request will stay as it is, or what to say if it ends before its plan."""
        if request.sampling_params is None or request.prompt_token_ids is None:
            return Uncompacted.OFF
        options = RequestOptions.parse(request.sampling_params.extra_args)
        if request.resumable or not options.enabled:
            return Uncompacted.OFF
        if not is_profiled(self._fastgen, options, request.num_prompt_tokens):
            return Uncompacted.SHORT
        return Uncompacted.FINISHED_FIRST

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        """Cap a prefix-cache hit so that all observed queries are computed."""
        blocks, num_hit, boundary, diverged = super()._get_local_prefix_cache_hit(request)
        if self._manager is None or self._outcome(request) != Uncompacted.FINISHED_FIRST:
            return blocks, num_hit, boundary, diverged
        num_prompt = int(request.num_prompt_tokens)
        first = num_prompt - observed_queries(self._fastgen, num_prompt)
        if num_hit > first:
            num_hit = first // self.block_size * self.block_size
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, num_hit)
        return blocks, num_hit, boundary, diverged

    def add_request(self, request: Request) -> None:
        if self._manager is not None:
            self._uncompacted[request.request_id] = self._outcome(request)
        super().add_request(request)

    def _free_request(
        self, request: Request, delay_free_blocks: bool = False
    ) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        answers = _wants_report(request)
        summary = None
        if self._manager is not None and (answers or self._fastgen.log_requests):
            summary = self._summary(request, self._manager)
        self._pending.pop(request.request_id, None)
        self._plans.pop(request.request_id, None)
        if (reason := self._uncompacted.pop(request.request_id, None)) is not None:
            self.stats.count_uncompacted(reason)
        if summary is not None and self._fastgen.log_requests:
            summary.log(external_id(request.request_id), str(request.get_finished_reason()))
        answer, encoder_answer = super()._free_request(request, delay_free_blocks)
        if summary is not None and answers:
            answer = summary.to_answer()
        return answer, encoder_answer

    def _summary(self, request: Request, manager: PerHeadManager) -> RequestSummary:
        is_compacted = manager.is_compacted(request.request_id)
        plan = self._plans[request.request_id] if is_compacted else None
        reason = None if is_compacted else self._uncompacted.get(request.request_id)
        return RequestSummary(
            prompt_tokens=request.num_prompt_tokens,
            answer_tokens=request.num_output_tokens,
            kept_share=1.0 if plan is None else plan.kept_share,
            policies={} if plan is None else plan.heads_by_policy,
            blocks=manager.num_blocks(request.request_id),
            blocks_uncompressed=cdiv(request.num_computed_tokens, self.block_size),
            preemptions=request.num_preemptions,
            uncompacted_because=None if reason is None else reason.value,
        )

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        stats = super().make_stats(*args, **kwargs)
        if stats is not None and self._send_stats and not self.stats.is_empty():
            stats.kv_connector_stats = {STATS_KEY: self.stats.to_dict()}
            self.stats = FastGenStats()
        return stats

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block and every plan is accounted for."""
        if self._manager is not None:
            self._manager.check_integrity()
        live = self.requests.keys()
        assert self._pending.keys() <= live, "a plan outlived its request"
        assert self._plans.keys() <= live, "a compacted request's plan outlived it"
        assert self._uncompacted.keys() <= live, "a request's outcome outlived it"


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
