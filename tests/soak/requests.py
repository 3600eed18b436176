"""A request of the soak, and what may be answered to it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jsonschema

from tests.soak.answers import Answer, Json

#: Says what is wrong with an answer; None if nothing is.
Judge = Callable[[Answer], str | None]

ENDS = ("stop", "length")


@dataclass(frozen=True)
class Request:
    """One POST.

    Attributes:
        kind: what it tries, in a word or two.
        judge: of its answer.
        runs: requests of the engine that its answer takes: choices, steps of beams.
        patience: seconds after which the client hangs up; None: it does not.
        raw: sent instead of the body.
    """

    kind: str
    path: str
    body: Json
    judge: Judge
    runs: int = 1
    patience: float | None = None
    raw: bytes | None = None

    @property
    def content(self) -> bytes:
        """What is sent."""
        return json.dumps(self.body).encode() if self.raw is None else self.raw


def answered(choices: int) -> Judge:
    """So many choices, all of which ended."""

    def judge(answer: Answer) -> str | None:
        if answer.status != 200 or answer.error is not None:
            return f"status {answer.status}, {answer.error}"
        if not answer.ended:
            return "cut: it has no [DONE]"
        if sorted(answer.choices) != list(range(choices)):
            return f"choices {sorted(answer.choices)} instead of {choices}"
        reasons = {choice.finish_reason for choice in answer.choices.values()}
        return None if reasons <= set(ENDS) else f"finish reasons {reasons}"

    return judge


def structured(choices: int, fits: Callable[[str], bool]) -> Judge:
    """Choices that are bound to a structure: those that ended by themselves fit it."""
    plain = answered(choices)

    def judge(answer: Answer) -> str | None:
        if (wrong := plain(answer)) is not None:
            return wrong
        texts = [c.text for c in answer.choices.values() if c.finish_reason == "stop"]
        unfit = [text for text in texts if not fits(text)]
        return f"does not fit its structure: {unfit[0]!r}" if unfit else None

    return judge


def fits_schema(schema: Json) -> Callable[[str], bool]:
    """Whether a text is JSON of this schema."""

    def fits(text: str) -> bool:
        try:
            jsonschema.validate(json.loads(text), schema)
        except (ValueError, jsonschema.ValidationError):
            return False
        return True

    return fits


def refused(late: bool = False, naming: tuple[str, ...] = ("",)) -> Judge:
    """A status from 400 to 499 with OpenAI's error.

    Args:
        late: vLLM finds the mistake when it starts to generate: a stream has begun by then, and
            the error is an event of it.
        naming: the message must hold one of these.
    """

    def judge(answer: Answer) -> str | None:
        status: Any = answer.status
        if late and status == 200 and answer.error is not None:
            status = answer.error.get("code")
        if not isinstance(status, int) or not 400 <= status < 500:
            return f"not refused: status {answer.status}, {answer.error or answer.text()[:80]!r}"
        error = answer.error
        if error is None or not isinstance(error.get("message"), str) or "type" not in error:
            return f"refused without OpenAI's error: {str(answer.body)[:80]}"
        if not any(name in error["message"] for name in naming):
            return f"refused for something else: {error['message']}"
        return None if answer.ended else "cut: it has no [DONE]"

    return judge


def has(**fields: object) -> Judge:
    """A body in which these fields have one of these values, or any value if it is `...`."""

    def judge(answer: Answer) -> str | None:
        if answer.status != 200 or answer.error is not None:
            return f"status {answer.status}, {answer.error}"
        for name, legal in fields.items():
            found = answer.body.get(name)
            if found is None or (isinstance(legal, tuple) and found not in legal):
                return f"{name} is {found!r}"
        return None

    return judge
