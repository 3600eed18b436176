"""From configuration to a selector."""

from fastgen_vllm.config import FastGenConfig, PolicyName
from fastgen_vllm.policy.base import Selector
from fastgen_vllm.policy.coverage import Coverage
from fastgen_vllm.policy.frequent import Frequent
from fastgen_vllm.policy.full import Full
from fastgen_vllm.policy.ladder import Ladder
from fastgen_vllm.policy.local import Local
from fastgen_vllm.policy.punctuation import Punctuation
from fastgen_vllm.policy.special import Special


def selector_for(config: FastGenConfig, policy: PolicyName | None = None) -> Selector:
    """Return the selector of ``policy``, by default the configured one."""
    match policy or config.policy:
        case "full":
            return Full()
        case "coverage":
            return Coverage(config.coverage.recent, config.coverage.sinks)
        case "paper":
            named = Special() | Punctuation()
            frequent = named | Frequent(config.paper.frequent)
            local = frequent | Local(config.paper.local)
            return Ladder((Special(), named, frequent, local, Full()))
