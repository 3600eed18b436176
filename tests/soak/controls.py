"""Prompts that are asked alone, again and again: their answers must not change.

Of answers that others run beside nothing of the kind holds: batches of other sizes round
otherwise, in bfloat16 by enough to change a token, seeded or not.
"""

from dataclasses import replace
from itertools import count
from random import Random

from tests.soak.answers import Answer
from tests.soak.client import Client, Lost
from tests.soak.prose import prose
from tests.soak.requests import Request, answered, fits_schema, structured
from tests.soak.traffic import CHAT, COMPLETIONS, LONG, OF_SCHEMA, SCHEMA

_SAID = prose(Random(1), LONG[1] - 8)
_REPORT = {"vllm_xargs": {"fastgen_report": "on"}}
_GREEDY = {"temperature": 0, "max_tokens": 48, "ignore_eos": True, **_REPORT}
_SEEDED = {**_GREEDY, "temperature": 0.8, "seed": 7}
_ASKED = [{"role": "user", "content": f"{_SAID} Describe one of them."}]
_BOUND = {"temperature": 0, "max_tokens": 80, "response_format": OF_SCHEMA, **_REPORT}

CONTROLS = (
    Request("short", COMPLETIONS, {"prompt": "The capital of France is", **_GREEDY}, answered(1)),
    Request("long", COMPLETIONS, {"prompt": _SAID, **_GREEDY}, answered(1)),
    Request("seeded", COMPLETIONS, {"prompt": prose(Random(2), 4), **_SEEDED}, answered(1)),
    Request("long and seeded", COMPLETIONS, {"prompt": f"So: {_SAID}", **_SEEDED}, answered(1)),
    Request("schema", CHAT, {"messages": _ASKED, **_BOUND}, structured(1, fits_schema(SCHEMA))),
)


class Controls:
    """Asks the prompts, and remembers what was said at first."""

    def __init__(self) -> None:
        self._first: dict[str, object] = {}
        self._salts = count()

    async def faults(self, client: Client) -> list[tuple[Request, str]]:
        """Ask each prompt with nothing of it in the prefix cache, and with what is left there."""
        found = []
        for control in CONTROLS:
            for salt in ({"cache_salt": f"control {next(self._salts)}"}, {}):
                asked = replace(control, body=control.body | salt)
                if (wrong := await self._fault(client, asked)) is not None:
                    found.append((asked, wrong))
        return found

    async def _fault(self, client: Client, asked: Request) -> str | None:
        try:
            answer = await client.ask(asked)
        except Lost as lost:
            return str(lost)
        assert answer is not None  # none hangs up
        if (wrong := asked.judge(answer)) is not None:
            return wrong
        said = _said(answer)
        first = self._first.setdefault(asked.kind, said)
        return None if said == first else f"answers {said}, at first {first}"


def _said(answer: Answer) -> object:
    """The text, and what became of the request."""
    return answer.text(), answer.report()
