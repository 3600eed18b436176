"""From configuration to a selector."""

from itertools import accumulate
from operator import or_

from fastgen_vllm.config import FastGenConfig, Rung
from fastgen_vllm.policy.base import Policy, Selector
from fastgen_vllm.policy.coverage import Coverage
from fastgen_vllm.policy.frequent import Frequent
from fastgen_vllm.policy.full import Full
from fastgen_vllm.policy.ladder import Ladder
from fastgen_vllm.policy.local import Local
from fastgen_vllm.policy.own import own_selector
from fastgen_vllm.policy.punctuation import Punctuation
from fastgen_vllm.policy.special import Special
from fastgen_vllm.request import RequestOptions


def selector_for(config: FastGenConfig, request: RequestOptions) -> Selector:
    """Return the selector that a request asks for, by default the configured one."""
    match request.policy or config.policy:
        case "full":
            return Full()
        case "coverage":
            options = config.coverage
            # A request that asks for a recovery does not mean the configured share.
            share = config.keep if request.recovery is None else None
            return Coverage(
                recent=options.recent,
                sinks=options.sinks,
                generated=options.generated if request.generated is None else request.generated,
                least=options.least,
                share=request.keep or share,
            )
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
