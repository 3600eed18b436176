"""What a prompt is compressed to: the server's options and one request's, made into one."""

from dataclasses import dataclass

from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.request import RequestOptions


@dataclass(frozen=True)
class Goal:
    """How one prompt is compressed, and how far."""

    policy: str  # name of a policy, or `package.module:Class`
    recovery: float  # attention mass that kept tokens must hold, in (0, 1]
    share: float | None  # of the prompt's tokens, kept instead, in (0, 1]
    generated: float  # slots that heads gain per generated token, 0 to 1, of policy coverage

    @classmethod
    def of(cls, config: FastGenConfig, request: RequestOptions, num_tokens: int) -> "Goal":
        """Return the goal for a prompt of ``num_tokens``; the request has the last word.

        A request that asks for a share or a number of tokens means a policy that has a budget,
        one that asks for a recovery does not mean the configured budget.
        """
        recovery = config.recovery if request.recovery is None else request.recovery
        if config.recovery_norm == "l1":
            # |A - softmax(QK_C)|_1 <= 1 - T: freed mass counts twice, lost and renormalised.
            recovery = (1 + recovery) / 2
        asked = _share(request, num_tokens)
        configured = _share(config, num_tokens) if request.recovery is None else None
        generated = config.coverage.generated if request.generated is None else request.generated
        return cls(
            policy=request.policy or (config.policy if asked is None else "coverage"),
            recovery=recovery,
            share=configured if asked is None else asked,
            generated=generated,
        )


def _share(options: FastGenConfig | RequestOptions, num_tokens: int) -> float | None:
    """The kept share of a prompt that options ask for, if they do; no more than all of it."""
    if options.keep_tokens is None:
        return options.keep
    return min(options.keep_tokens, num_tokens) / num_tokens
