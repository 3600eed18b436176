"""The paper's choice: per head the cheapest rung that recovers enough attention."""

from dataclasses import dataclass

import torch

from fastgen_vllm.policy.base import Choice, Policy, Selector
from fastgen_vllm.policy.full import Full
from fastgen_vllm.profile.prompt import PromptProfile


@dataclass(frozen=True)
class Ladder(Selector):
    """Chooses, per head, the rung with the fewest kept tokens whose recovery reaches T.

    Source: arXiv 2310.01801, equation 2 and algorithm 1. Cheapest is by kept tokens, not by
    the order of rungs; of equally cheap rungs the earlier wins. The last rung must be
    :class:`Full`, which always suffices.

    Attributes:
        rungs: the policies, from special tokens to everything.
    """

    rungs: tuple[Policy, ...]

    def __post_init__(self) -> None:
        if not self.rungs or not isinstance(self.rungs[-1], Full):
            raise ValueError("the last rung of a ladder must be Full()")

    def choose(self, profile: PromptProfile, recovery: float) -> Choice:
        shape = profile.attention.shape
        keeps = [rung.keep(profile).expand(shape) for rung in self.rungs]
        costs = []
        for rung, keep in zip(self.rungs, keeps, strict=True):
            cost = keep.sum(-1)
            if not isinstance(rung, Full):
                cost = cost.masked_fill(profile.recovery(keep) < recovery, shape[-1] + 1)
            costs.append(cost)
        # [rungs, L, H]; argmin takes the first of equal values.
        index = torch.stack(costs).argmin(0)
        picked = index[None, ..., None].expand(1, *shape)
        keep = torch.stack(keeps).gather(0, picked)[0]
        return Choice(policies=self.rungs, index=index, keep=keep)
