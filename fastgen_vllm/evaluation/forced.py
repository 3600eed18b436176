"""A logits processor that makes a request follow given tokens and notes what it would have said."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

#: Key in ``SamplingParams.extra_args``: the token ids to follow, a list of integers.
FORCED_TOKENS = "forced_tokens"
#: Key in ``SamplingParams.extra_args``: the name under which the logits are kept.
RECORD_AS = "record_as"
#: Key in ``SamplingParams.extra_args``: how many of the last tokens' logits are kept.
NUM_SCORED = "num_scored"


@dataclass
class _Follower:
    forced: list[int]
    num_scored: int
    name: str
    output: list[int]  # vLLM's own list of the tokens generated so far


@dataclass
class Recording:
    """Logits before each forced token that is scored."""

    rows: dict[int, Tensor] = field(default_factory=dict)  # [V] float32 per position

    def log_probabilities(self) -> Tensor:
        """[num_scored, V] float32, in the order of the forced tokens."""
        rows = [self.rows[position] for position in sorted(self.rows)]
        return torch.stack(rows).log_softmax(-1)


class ForcedContinuation(LogitsProcessor):
    """Forces tokens and records the logits that came before each of the last ones.

    Requests without :data:`FORCED_TOKENS` are left alone. After a preemption the positions
    already recorded are not computed again, so every position is recorded once.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.recordings: dict[str, Recording] = {}
        self._followers: dict[int, _Follower] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._followers.pop(index, None)
        for index, params, _prompt, output in batch_update.added:
            self._followers.pop(index, None)
            follower = _follower(params, output)
            if follower is not None:
                self._followers[index] = follower
        for source, target, direction in batch_update.moved:
            moved, replaced = self._followers.pop(source, None), self._followers.pop(target, None)
            if moved is not None:
                self._followers[target] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                self._followers[source] = replaced

    def apply(self, logits: Tensor) -> Tensor:
        for index, follower in self._followers.items():
            position = len(follower.output)
            if position >= len(follower.forced) - follower.num_scored:
                recording = self.recordings.setdefault(follower.name, Recording())
                recording.rows[position] = logits[index].float().clone()
            logits[index] = float("-inf")
            logits[index, follower.forced[position]] = 0.0
        return logits


def _follower(params: SamplingParams, output: list[int]) -> _Follower | None:
    arguments = params.extra_args or {}
    forced = arguments.get(FORCED_TOKENS)
    if forced is None:
        return None
    return _Follower(forced, arguments[NUM_SCORED], arguments[RECORD_AS], output)
