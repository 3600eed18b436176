"""One request's state in the worker, from its prompt to its page stream."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from fastgen_vllm.compaction import PreparedCompaction
from fastgen_vllm.pages.size import StreamSize
from fastgen_vllm.profile.observation import Observation
from fastgen_vllm.request import RequestOptions
from fastgen_vllm.runtime.messages import PlanReport
from fastgen_vllm.runtime.replayed import Waiting


class Held(NamedTuple):
    """Memory of one compacted request."""

    slots: int  # in use
    pages: int  # given to heads


@dataclass
class TrackedRequest:
    """A request that is, or may be, compacted."""

    options: RequestOptions
    observation: Observation
    prompt_class: Tensor  # [N] int32, TokenClass bits
    begin: int = field(init=False)  # first query that is asked anything, in this life
    next_observed: int = field(init=False)
    attention: Tensor | None = None  # [L, H, N] while profiling
    energy: Tensor | None = None  # [L, H, N] while profiling
    waiting: Waiting = field(default_factory=dict)  # while its queries are replayed
    prompt_row: Tensor | None = None  # [blocks] int32, the prompt's stock blocks
    stock_blocks: int = 0  # first blocks that others read, too, when the prompt ended
    unasked: tuple[int, ...] = ()  # blocks of the prompt that were found without a replay
    preemptions: int = 0
    prepared: PreparedCompaction | None = None  # until it is carried out
    planned: PlanReport | None = None  # of that compaction, also once it was carried out
    lane: int | None = None  # row of `heads` once compacted
    size: StreamSize | None = None  # of the page stream once compacted

    def __post_init__(self) -> None:
        self.start(self.observation.first_asked)

    @property
    def num_prompt(self) -> int:
        """Prompt tokens, ``N``."""
        return self.observation.num_tokens

    @property
    def num_observed(self) -> int:
        """Last queries whose attention to all tokens is summed, ``W``: those that are computed."""
        return self.num_prompt - max(self.begin, self.observation.first_observed)

    def start(self, first: int) -> None:
        """Have queries asked from this position on."""
        self.begin = self.next_observed = first

    def restart(self) -> None:
        """Forget everything but the prompt: the request was preempted."""
        self.preemptions += 1
        self.start(self.observation.first_asked)
        self.attention = self.energy = self.prompt_row = self.prepared = self.planned = None
        self.lane = self.size = None
        self.stock_blocks, self.unasked = 0, ()
        self.waiting.clear()
