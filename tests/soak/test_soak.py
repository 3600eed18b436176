"""The soak finds what is wrong with a server; a real one is right for two minutes."""

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.soak import __main__ as program
from tests.soak import soak, watch
from tests.soak.answers import Answer
from tests.soak.client import Client, Lost
from tests.soak.controls import CONTROLS
from tests.soak.growth import Growth
from tests.soak.requests import Request, answered, fits_schema, refused, structured
from tests.soak.soak import Soak
from tests.soak.traffic import SCHEMA, Load

ERROR = {"message": "no", "type": "BadRequestError", "param": None, "code": 400}
FITS = json.dumps({"who": "miller", "count": 3, "what": ["old maps"], "note": "x"})
Body = dict[str, Any]


def events(*pieces: Body, done: bool = True) -> httpx.Response:
    lines = [f"data: {json.dumps(piece)}" for piece in pieces] + ["data: [DONE]"] * done
    return httpx.Response(
        200, headers={"Content-Type": "text/event-stream"}, text="\n\n".join(lines)
    )


def choice(index: int, text: str, reason: str | None = None) -> Body:
    return {"choices": [{"index": index, "text": text, "finish_reason": reason}]}


def asked(response: httpx.Response) -> Answer:
    """What the client makes of a response."""

    async def ask() -> Answer | None:
        async with Client("http://test", httpx.MockTransport(lambda _: response)) as client:
            return await client.ask(Request("", "/", {}, answered(1)))

    answer = asyncio.run(ask())
    assert answer is not None
    return answer


def test_a_stream_is_put_together() -> None:
    answer = asked(events(choice(1, "a"), choice(0, "b"), choice(1, "c", "stop")))
    assert (answer.choices[1].text, answer.choices[1].finish_reason) == ("ac", "stop")
    assert answer.choices[0].finish_reason is None
    assert "finish reasons" in str(answered(2)(answer))
    assert "choices" in str(answered(3)(answer))


def test_a_cut_stream() -> None:
    whole = choice(0, "a", "length")
    assert answered(1)(asked(events(whole))) is None
    assert "cut" in str(answered(1)(asked(events(whole, done=False))))


@pytest.mark.parametrize("status", [200, 500, 503, 404])
def test_no_answer(status: int) -> None:
    assert answered(1)(asked(httpx.Response(status, json={"error": ERROR}))) is not None


def test_refusals() -> None:
    late = asked(events({"error": ERROR}))
    assert refused(late=True)(late) is None
    assert "not refused" in str(refused()(late))
    assert refused()(asked(httpx.Response(400, json={"error": ERROR}))) is None
    assert "else" in str(
        refused(naming=("keep",))(asked(httpx.Response(400, json={"error": ERROR})))
    )
    assert "OpenAI's" in str(refused()(asked(httpx.Response(400, json={"detail": "no"}))))
    assert "not refused" in str(refused()(asked(httpx.Response(500, json={"error": ERROR}))))


@pytest.mark.parametrize(
    ("text", "reason", "right"),
    [(FITS, "stop", True), ('{"who"', "length", True), ("{}", "stop", False), ("{", "stop", False)],
)
def test_structures(text: str, reason: str, right: bool) -> None:
    judge = structured(1, fits_schema(SCHEMA))
    assert (judge(asked(httpx.Response(200, json=choice(0, text, reason)))) is None) is right


def test_a_lost_request() -> None:
    def break_off(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("gone", request=request)

    async def ask() -> None:
        async with Client("http://test", httpx.MockTransport(break_off)) as client:
            await client.ask(Request("", "/", {}, answered(1)))

    with pytest.raises(Lost, match="gone"):
        asyncio.run(ask())


@pytest.mark.parametrize(
    ("sizes", "wrong"),
    [
        ([100.0, 300, *[400.0] * 20], None),
        ([100.0 + 20 * minute for minute in range(24)], "settle"),
        ([100.0 + 20 * minute for minute in range(12)], None),
        ([100.0, 1500], "grew"),
        ([100.0, 400], None),
    ],
)
def test_growth(sizes: list[float], wrong: str | None) -> None:
    fault = Growth.of(range(len(sizes)), sizes).fault()
    assert fault is None if wrong is None else wrong in str(fault)


def test_the_same_seed_asks_the_same() -> None:
    def first(seed: int) -> list[object]:
        requests = Load(seed, frozenset(), fastgen=True).requests()
        return [(r.path, r.content, r.patience) for r in itertools.islice(requests, 300)]

    assert first(1) == first(1) != first(2)


class Fake:
    """A server that has an answer to everything."""

    used = 0.0
    running: tuple[Body, ...] = ()

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/metrics":
            return httpx.Response(200, text=self.metrics())
        if request.url.path == "/fastgen/requests":
            return httpx.Response(200, json={"requests": self.running})
        self.asked += 1
        return self.answer()

    def answer(self) -> httpx.Response:
        return httpx.Response(200, json=choice(0, FITS, "stop"))

    def metrics(self) -> str:
        counted = f'vllm:request_success_total{{finished_reason="stop"}} {self.asked}\n'
        preempted = f"vllm:num_preemptions_total {self.asked}\n"
        return f"vllm:kv_cache_usage_perc {self.used}\n{counted}{preempted}"


class Leaks(Fake):
    used = 0.1


class ListsOne(Fake):
    running = ({"id": "1"},)


class CountsNothing(Fake):
    def metrics(self) -> str:
        return f"vllm:num_preemptions_total {self.asked}\n"


class CountsErrors(Fake):
    def metrics(self) -> str:
        return f'{super().metrics()}http_requests_total{{status="5xx"}} {self.asked}\n'


class HasRoom(Fake):
    def metrics(self) -> str:
        return super().metrics().replace("preemptions", "others")


class SaysOtherThings(Fake):
    def answer(self) -> httpx.Response:
        return httpx.Response(200, json=choice(0, f"{self.asked}", "length"))


class Dies(Fake):
    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.asked > 20:
            raise httpx.ConnectError("refused", request=request)
        return super().__call__(request)


class OneKind(Load):
    def requests(self) -> Iterator[Request]:
        return itertools.repeat(Request("one", "/v1/completions", {}, answered(1)))


@pytest.mark.parametrize(
    ("server", "kinds"),
    [
        (Fake, set()),
        (Leaks, {"not idle"}),
        (ListsOne, {"listed"}),
        (CountsNothing, {"counted"}),
        (CountsErrors, {"counted as failed"}),
        (HasRoom, {"no soak"}),
        (SaysOtherThings, {f"control {control.kind}" for control in CONTROLS}),
        (Dies, {"one", "server", "no soak"}),
    ],
)
def test_a_round(
    server: Callable[[], Fake], kinds: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "LOAD_SECONDS", 0.1)
    monkeypatch.setattr(soak, "memory", dict)
    monkeypatch.setattr(watch, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.01)

    async def run() -> set[str]:
        async with Client("http://test", httpx.MockTransport(server())) as client:
            done = Soak(client, OneKind(0, frozenset(), fastgen=False), lambda line: None)
            await done.run(minutes=0)
        return {fault.kind for fault in done.faults}

    assert asyncio.run(run()) == kinds


@pytest.mark.slow
def test_two_minutes(tmp_path: Path, default_model: Path) -> None:
    assert program.main(["--minutes", "2", "--log", str(tmp_path / "log")]) == 0
