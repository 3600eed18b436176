"""Coverage: one budget over all layers and heads, set by recovery or by memory."""

import math
from dataclasses import dataclass

import torch

from fastgen_vllm.policy.base import Choice, Selector
from fastgen_vllm.policy.full import Full
from fastgen_vllm.policy.important import Important
from fastgen_vllm.profile.prompt import PromptProfile


@dataclass(frozen=True)
class Coverage(Selector):
    """Keeps the :class:`Important` tokens, as many as wanted.

    How many is either given as a share of the prompt, or found: the fewest, to one token a
    head, whose recovery, averaged over heads, reaches the threshold. Recent tokens are a
    share of what is kept, so a budget of more tokens a head keeps a superset.

    Attributes:
        recent: share of the kept tokens that are the most recent, in [0, 1].
        sinks: first tokens that are kept.
        generated: slots that heads gain for every generated token, from 0 to 1.
        least: kept share that recovery does not go below, in [0, 1]: attention of long prompts
            is covered by ever smaller shares, which then lack what few queries look for.
        share: kept share of the prompt, in (0, 1]; None goes by recovery.
    """

    recent: float
    sinks: int
    generated: float = 0.0
    least: float = 0.0
    share: float | None = None

    def choose(self, profile: PromptProfile, recovery: float) -> Choice:
        if self.share is not None:
            policy = self._spend(round(self.share * profile.attention.numel()), profile)
        else:
            policy = self._fewest(recovery, profile)
        keep = policy.keep(profile)
        index = keep.all(-1).to(torch.int64)
        return Choice(policies=(policy, Full()), index=index, keep=keep)

    def _spend(self, total: int, profile: PromptProfile) -> Important:
        num_heads = profile.attention[..., 0].numel()
        recent = max(1, math.ceil(self.recent * total / num_heads))
        return Important(total, recent, self.sinks, self.generated)

    def _fewest(self, recovery: float, profile: PromptProfile) -> Important:
        """Bisect, to one token a head: recovery grows with the budget, as kept sets are nested."""
        num_heads = profile.attention[..., 0].numel()
        low, high = math.ceil(self.least * profile.num_tokens), profile.num_tokens
        while recovery < 1 and low < high:
            middle = (low + high) // 2
            if self._spend(middle * num_heads, profile).recovery(profile) >= recovery:
                high = middle
            else:
                low = middle + 1
        return self._spend(high * num_heads, profile)
