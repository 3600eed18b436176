"""From configuration to a selector."""

from itertools import accumulate
from operator import or_

from fastgen_vllm.config import FastGenConfig, Rung
from fastgen_vllm.goal import Goal
from fastgen_vllm.policy.ahakv import AhaKV
from fastgen_vllm.policy.base import Policy, Selector
from fastgen_vllm.policy.coverage import Coverage
from fastgen_vllm.policy.frequent import Frequent
from fastgen_vllm.policy.full import Full
from fastgen_vllm.policy.ladder import Ladder
from fastgen_vllm.policy.local import Local
from fastgen_vllm.policy.own import own_selector
from fastgen_vllm.policy.punctuation import Punctuation
from fastgen_vllm.policy.special import Special


def selector_for(config: FastGenConfig, goal: Goal) -> Selector:
    """Return what chooses for a prompt with this goal."""
    match goal.policy:
        case "full":
            return Full()
        case "coverage":
            options = config.coverage
            return Coverage(
                recent=options.recent,
                sinks=options.sinks,
                generated=goal.generated,
                least=options.least,
                share=goal.share,
            )
        case "ahakv":
            assert goal.share is not None, "ahakv without a budget"
            return AhaKV(goal.share)
        case "paper":
            policies: dict[Rung, Policy] = {
                "special": Special(),
                "punctuation": Punctuation(),
                "frequent": Frequent(config.paper.frequent),
                "local": Local(config.paper.local),
            }
            kept = [policy for rung, policy in policies.items() if rung not in config.paper.without]
            return Ladder((*accumulate(kept, or_), Full()))
        case path:
            return own_selector(path)
