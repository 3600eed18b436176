"""Options that a single request carries in ``vllm_xargs`` (``SamplingParams.extra_args``)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

from fastgen_vllm.config import Generated, PolicyName

PREFIX: Final = "fastgen"
ENABLED: Final = "fastgen"
RECOVERY: Final = "fastgen_recovery"
KEEP: Final = "fastgen_keep"
GENERATED: Final = "fastgen_generated"
POLICY: Final = "fastgen_policy"


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
    keep: float | None = None  # implies policy coverage
    policy: PolicyName | None = None
    generated: Generated | None = None

    @classmethod
    def parse(cls, arguments: Mapping[str, Any] | None) -> "RequestOptions":
        """Read the options that start with ``fastgen``; others are not ours.

        Raises:
            RequestOptionError: an unknown ``fastgen*`` option or a bad value.
        """
        own = {name: value for name, value in (arguments or {}).items() if _is_ours(name)}
        options = cls(
            enabled=_parse_enabled(own.pop(ENABLED, "on")),
            recovery=_parse_share(RECOVERY, own.pop(RECOVERY, None)),
            keep=_parse_share(KEEP, own.pop(KEEP, None)),
            policy=_parse_choice(POLICY, own.pop(POLICY, None), get_args(PolicyName)),
            generated=_parse_choice(GENERATED, own.pop(GENERATED, None), get_args(Generated)),
        )
        if options.keep is not None:
            if options.recovery is not None:
                raise RequestOptionError(KEEP, options.keep, f"give it or {RECOVERY}, not both")
            if options.policy not in (None, "coverage"):
                raise RequestOptionError(KEEP, options.keep, f"{POLICY} must be coverage")
            options = replace(options, policy="coverage")
        if options.generated is not None and options.policy not in (None, "coverage"):
            raise RequestOptionError(GENERATED, options.generated, f"{POLICY} must be coverage")
        for name, value in own.items():
            known = ", ".join((ENABLED, RECOVERY, KEEP, POLICY, GENERATED))
            raise RequestOptionError(name, value, f"known are {known}")
        return options


def _is_ours(name: str) -> bool:
    return name == PREFIX or name.startswith(f"{PREFIX}_")


def _parse_enabled(value: object) -> bool:
    if value not in ("on", "off"):
        raise RequestOptionError(ENABLED, value, 'use "on" or "off"')
    return value == "on"


def _parse_share(name: str, value: object) -> float | None:
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 < value <= 1:  # type: ignore[arg-type, operator]
        raise RequestOptionError(name, value, "use a number above 0 and at most 1")
    return float(value)  # type: ignore[arg-type]


def _parse_choice(name: str, value: object, legal: tuple[str, ...]) -> Any:
    if value is not None and value not in legal:
        raise RequestOptionError(name, value, f"use one of {', '.join(legal)}")
    return value
