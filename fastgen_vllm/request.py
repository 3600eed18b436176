"""Options that a single request carries in ``vllm_xargs`` (``SamplingParams.extra_args``)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

from fastgen_vllm.config import GENERATED_WORDS, HAVE_BUDGET, NEED_BUDGET, PolicyName, When

PREFIX: Final = "fastgen"
ENABLED: Final = "fastgen"
RECOVERY: Final = "fastgen_recovery"
KEEP: Final = "fastgen_keep"
KEEP_TOKENS: Final = "fastgen_keep_tokens"
GENERATED: Final = "fastgen_generated"
POLICY: Final = "fastgen_policy"
WHEN: Final = "fastgen_when"
REPORT: Final = "fastgen_report"
KNOWN: Final = (ENABLED, RECOVERY, KEEP, KEEP_TOKENS, POLICY, GENERATED, WHEN, REPORT)
SWITCH: Final = ("on", "off")


class RequestOptionError(ValueError):
    """A per-request option is unknown or out of range.

    Attributes:
        parameter: the option's name.
        value: what the request gave.
    """

    def __init__(self, parameter: str, value: object, legal: str) -> None:
        super().__init__(f"{parameter}={value!r} is not allowed: {legal}.")
        self.parameter = parameter
        self.value = value


@dataclass(frozen=True)
class RequestOptions:
    """How one request wants its cache treated; ``None`` means as the server is configured."""

    enabled: bool = True
    recovery: float | None = None
    keep: float | None = None  # share of the prompt
    keep_tokens: int | None = None
    policy: PolicyName | None = None
    generated: float | None = None  # slots per generated token, 0 to 1
    when: When | None = None
    report: bool = False  # the answer says what became of the request

    @classmethod
    def parse(cls, arguments: Mapping[str, Any] | None) -> "RequestOptions":
        """Read the options that start with ``fastgen``; others are not ours.

        Raises:
            RequestOptionError: an unknown ``fastgen*`` option or a bad value.
        """
        own = {name: value for name, value in (arguments or {}).items() if _is_ours(name)}
        options = cls(
            enabled=_parse_switch(ENABLED, own.pop(ENABLED, "on")),
            recovery=_parse_share(RECOVERY, own.pop(RECOVERY, None)),
            keep=_parse_share(KEEP, own.pop(KEEP, None)),
            keep_tokens=_parse_count(KEEP_TOKENS, own.pop(KEEP_TOKENS, None)),
            policy=_parse_choice(POLICY, own.pop(POLICY, None), get_args(PolicyName)),
            generated=_parse_generated(own.pop(GENERATED, None)),
            when=_parse_choice(WHEN, own.pop(WHEN, None), get_args(When)),
            report=_parse_switch(REPORT, own.pop(REPORT, "off")),
        )
        options._check_goal()
        if options.generated is not None and options.policy not in (None, "coverage"):
            given = (arguments or {})[GENERATED]
            raise RequestOptionError(GENERATED, given, f"{POLICY} must be coverage")
        for name, value in own.items():
            known = ", ".join(KNOWN)
            raise RequestOptionError(name, value, f"known are {known}")
        return options

    def _check_goal(self) -> None:
        """Refuse two goals, and a budget where the policy has none, or none where it needs one."""
        goals = {RECOVERY: self.recovery, KEEP: self.keep, KEEP_TOKENS: self.keep_tokens}
        given = [name for name, value in goals.items() if value is not None]
        if len(given) > 1:
            name = given[-1]
            raise RequestOptionError(name, goals[name], f"give it or {given[0]}, not both")
        for name in given:
            if name != RECOVERY and self.policy not in (None, *HAVE_BUDGET):
                legal = " or ".join(HAVE_BUDGET)
                raise RequestOptionError(name, goals[name], f"{POLICY} must be {legal}")
        if self.policy in NEED_BUDGET and given in ([], [RECOVERY]):
            raise RequestOptionError(POLICY, self.policy, f"give {KEEP} or {KEEP_TOKENS} with it")


def _is_ours(name: str) -> bool:
    return name == PREFIX or name.startswith(f"{PREFIX}_")


def _parse_switch(name: str, value: object) -> bool:
    if value not in SWITCH:
        raise RequestOptionError(name, value, 'use "on" or "off"')
    return value == "on"


def _parse_share(name: str, value: object) -> float | None:
    if value is None:
        return None
    number = _number(value)
    if number is None or not 0 < number <= 1:
        raise RequestOptionError(name, value, "use a number above 0 and at most 1")
    return number


def _parse_count(name: str, value: object) -> int | None:
    if value is None:
        return None
    number = _number(value)
    if number is None or number < 1 or not number.is_integer():
        raise RequestOptionError(name, value, "use a whole number, at least 1")
    return int(number)


def _parse_generated(value: object) -> float | None:
    if value is None:
        return None
    number = GENERATED_WORDS.get(value) if isinstance(value, str) else _number(value)
    if number is None or not 0 <= number <= 1:
        words = ", ".join(GENERATED_WORDS)
        raise RequestOptionError(GENERATED, value, f"use one of {words}, or a number from 0 to 1")
    return number


def _number(value: object) -> float | None:
    """``value`` as a float; None if it is no finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _parse_choice(name: str, value: object, legal: tuple[str, ...]) -> Any:
    if value is not None and value not in legal:
        raise RequestOptionError(name, value, f"use one of {', '.join(legal)}")
    return value
