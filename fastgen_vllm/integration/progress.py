"""What the scheduler knows of one request's way to its page stream."""

from dataclasses import dataclass
from math import lcm

from fastgen_vllm.pages.size import StreamSize
from fastgen_vllm.profile.observation import Observation
from fastgen_vllm.profile.replay import BLOCK, TILE, whole_blocks
from fastgen_vllm.runtime.messages import PlanReport, Uncompacted


@dataclass
class RequestProgress:
    """From its arrival to its end."""

    #: what to say if it ended now; None while it is compacted
    outcome: Uncompacted | None
    #: what is asked of its prompt; None if it is not profiled
    observation: Observation | None = None
    #: whether it is compacted only when room is short
    is_patient: bool = False
    #: tokens that the prefix cache had when it last began to run, and when it first did
    found: int = 0
    first_found: int | None = None
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
    def size(self) -> StreamSize:
        """Of the page stream that is planned for it."""
        assert self.plan is not None, "it has no plan"
        return self.plan.size

    @property
    def awaits_plan(self) -> bool:
        """Whether its prompt will be profiled, or was in a step that is not over."""
        return self.is_profiled and self.plan is None

    def usable(self, num_hit: int, num_replayed: int, block_size: int, is_alone: bool) -> int:
        """How many tokens of a hit in the prefix cache are used.

        All of them, if the prompt is replayed: queries that are computed are asked, and for the
        others stands what was left beside their blocks. A request that was preempted should keep
        what it kept before, and one that is compressed as if it were alone what it would keep
        without a prefix cache: they use no more than the first time, or than changes nothing.

        Args:
            num_replayed: tokens of its first blocks beside which lies what a replay left.
            is_alone: whether it is compressed as if there were no others.
        """
        assert self.observation is not None
        unit, most = block_size, self.observation.first_observed
        if self.observation.is_replay:
            unit, most = lcm(block_size, BLOCK), min(most, num_replayed)
        same = min(num_hit, most) // unit * unit
        if is_alone or not self.observation.is_replay:
            return same
        tile, first = lcm(block_size, TILE), self.first_found
        return max(same, (num_hit if first is None else min(num_hit, first)) // tile * tile)

    def replayed(self, num_computed: int) -> range:
        """Positions of the prompt whose own queries were replayed when so many are computed."""
        if not self.awaits_plan or self.observation is None or not self.observation.is_replay:
            return range(0)
        num_prompt = self.observation.num_tokens
        end = num_prompt if num_computed >= num_prompt else whole_blocks(num_computed)
        return range(self.found, end)

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
        if self.first_found is None:
            self.first_found = self.found
        if self.is_profiled:
            self.outcome, self.plan, self.looked_at = Uncompacted.FINISHED_FIRST, None, None
