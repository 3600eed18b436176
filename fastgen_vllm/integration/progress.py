"""What the scheduler knows of one request's way to its page stream."""

from dataclasses import dataclass

from fastgen_vllm.profile.observation import Observation
from fastgen_vllm.runtime.messages import PlanReport, Uncompacted


@dataclass
class RequestProgress:
    """From its arrival to its end."""

    #: what to say if it ended now; None while it is compacted
    outcome: Uncompacted | None
    #: what is asked of its prompt; None if it is not profiled
    observation: Observation | None = None
    #: of its prompt: it waits, or was carried out
    plan: PlanReport | None = None
    #: tokens that were stored when it was compacted. After a preemption its answer is computed
    #: anew from there as it was at first: token by token, over a page stream
    compacted_at: int | None = None
    #: blocks that its compaction gave back to the pool
    given_back: int = 0
    #: the last time when compaction would have given back nothing: its blocks, and what the
    #: scheduler had counted of readers that left
    looked_at: tuple[int, int] | None = None

    @property
    def is_profiled(self) -> bool:
        """Whether its prompt is, will be or was profiled by the worker."""
        return self.plan is not None or self.outcome is Uncompacted.FINISHED_FIRST

    @property
    def is_replaying(self) -> bool:
        """Whether its prompt is being replayed: it is not whole yet."""
        return self.awaits_plan and self.observation is not None and self.observation.is_replay

    @property
    def awaits_plan(self) -> bool:
        """Whether its prompt will be profiled, or was in a step that is not over."""
        return self.is_profiled and self.plan is None

    def receive(self, plan: PlanReport) -> None:
        """Its prompt has been profiled."""
        self.plan = plan

    def settle(self, reason: Uncompacted) -> None:
        """It stays uncompacted, for good."""
        self.outcome, self.plan, self.compacted_at = reason, None, None

    def wait(self, reason: Uncompacted) -> None:
        """It cannot be compacted now; what comes of a preempted answer is computed densely."""
        self.outcome, self.compacted_at = reason, None

    def compact(self, num_stored: int, given_back: int) -> None:
        """Its blocks were swapped for a page stream."""
        self.outcome, self.compacted_at, self.given_back = None, num_stored, given_back

    def preempt(self) -> None:
        """It lost its blocks; if it was profiled, it will be again."""
        if self.is_profiled:
            self.outcome, self.plan, self.looked_at = Uncompacted.FINISHED_FIRST, None, None
