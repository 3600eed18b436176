"""What a prompt is compressed to: the server's options and one request's, made into one."""

from dataclasses import dataclass

from fastgen_vllm.config import HAVE_BUDGET, NEED_BUDGET, FastGenConfig
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

        A request that asks for a recovery does not mean the configured share or tokens.
        """
        recovery = config.recovery if request.recovery is None else request.recovery
        if config.recovery_norm == "l1":
            # |A - softmax(QK_C)|_1 <= 1 - T: freed mass counts twice, lost and renormalised.
            recovery = (1 + recovery) / 2
        share = _share(request, num_tokens)
        if share is None and request.recovery is None:
            share = _share(config, num_tokens)
        generated = config.coverage.generated if request.generated is None else request.generated
        return cls(_policy(config, request), recovery, share, generated)


def _policy(config: FastGenConfig, request: RequestOptions) -> str:
    """The policy that a request names or, if it goes by what the request asks for, configured.

    Else it is coverage, which goes by anything.
    """
    if request.policy is not None:
        return request.policy
    if request.keep is not None or request.keep_tokens is not None:
        return config.policy if config.policy in HAVE_BUDGET else "coverage"
    if request.recovery is not None and config.policy in NEED_BUDGET:
        return "coverage"
    return config.policy


def _share(options: FastGenConfig | RequestOptions, num_tokens: int) -> float | None:
    """The kept share of a prompt that options ask for, if they do; no more than all of it."""
    if options.keep_tokens is None:
        return options.keep
    return min(options.keep_tokens, num_tokens) / num_tokens
