"""What scheduler and worker tell each other, on vLLM's own step messages.

Scheduler to worker: :class:`StepOrders` travels as ``SchedulerOutput.kv_connector_metadata``.
Worker to scheduler: :class:`WorkerReport` travels as
``KVConnectorOutput.kv_connector_worker_meta``. Both fields exist for KV connectors, which
cannot be configured beside FastGen, so they are free. Of what is in them vLLM only pickles it and
calls ``aggregate``; the classes are none of vLLM's, so that the worker's state runs without it.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from fastgen_vllm.pages.size import StreamSize


class PromptEnd(NamedTuple):
    """What the scheduler knows of the blocks of a prompt that ends in this step."""

    stock_blocks: int = 0  # first blocks that others read, too
    unasked: tuple[int, ...] = ()  # which of its blocks were found without what a replay leaves


class CompactionOrder(NamedTuple):
    """Copy one request's kept tokens from its old blocks into its new ones."""

    request_id: str
    preemptions: int  # as the plan that it carries out
    old_row: list[int]  # block ids, in order; may be reused right after the copy
    new_row: list[int]
    num_stored: int  # tokens on the old blocks
    num_stay: int = 0  # first blocks of both rows, the same ones


@dataclass
class StepOrders:
    """Orders that a worker carries out before a step's forward pass, in this order."""

    compactions: list[CompactionOrder] = field(default_factory=list)
    #: requests whose plan will not be used
    declined: list[str] = field(default_factory=list)
    #: requests among the step's new ones whose prompts are profiled
    profiled: list[str] = field(default_factory=list)
    #: profiled requests whose prompts end in this step
    ends: dict[str, PromptEnd] = field(default_factory=dict)


class PlanReport(NamedTuple):
    """What the scheduler has to know of a finished plan, and what metrics want."""

    request_id: str
    preemptions: int  # of the request, before its prompt was profiled
    size: StreamSize
    kept_share: float  # kept tokens over prompt tokens, averaged over heads
    heads_by_policy: dict[str, int]


class Uncompacted(StrEnum):
    """Why a request ended uncompacted."""

    OFF = "off"  # asked for, or a kind of request that is not profiled
    SHORT = "short"  # fewer prompt tokens than `min_prompt`
    SHORT_ANSWER = "short_answer"  # it could not answer `min_answer` tokens
    ROOM = "room"  # there was room for it as it is
    NO_SAVING = "no_saving"  # compaction would not have given back a block
    NO_ROOM = "no_room"  # forced without a saving, the pool was full until it finished
    UNOBSERVED = "unobserved"  # queries that had to be profiled were not computed
    POLICY_FAILED = "policy_failed"  # a policy of the user's own; the log says how
    FINISHED_FIRST = "finished_first"  # it ended before its plan could be used


@dataclass
class WorkerReport:
    """What a worker reports of one step."""

    plans: list[PlanReport] = field(default_factory=list)
    without_plan: dict[str, Uncompacted] = field(default_factory=dict)  # by request
    profiling_seconds: float = 0.0
    compaction_seconds: float = 0.0

    def aggregate(self, other: "WorkerReport") -> "WorkerReport":
        """Ranks are not merged yet: tensor parallelism is refused at start."""
        raise NotImplementedError("FastGen runs on one rank per engine")
