"""FastGen's server answers like vLLM's own, on the same model with the same flags.

`full` computes everything that FastGen adds and gives nothing up: its answers are equal. `balanced`
serves short prompts uncompressed; answers to long ones have equal form, usage and errors.
"""

import asyncio
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server import features
from tests.server.features import KEY, LONG, LONG_CASES, MODEL, SHORT_CASES, Case, shape
from tests.server.running import FLAGS, Server

#: float32: rounding of our kernels and vLLM's does not change a token
COMMON = (*FLAGS, *features.FLAGS, "--dtype", "float32", "--block-size", "32")
LOGPROB_ERROR = 2e-3


class Side:
    """A server, asked every case once."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.client = httpx.Client(
            base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120
        )
        self._answers: dict[Case, Any] = {}

    def ask(self, case: Case) -> Any:
        """The answer, from memory if it is there."""
        if case not in self._answers:
            self._answers[case] = case(self.client)
        return self._answers[case]


@pytest.fixture(scope="module")
def sides(
    tmp_path_factory: pytest.TempPathFactory, default_model: Path
) -> Iterator[dict[str, Side]]:
    logs = tmp_path_factory.mktemp("servers")
    named = ("--model", str(default_model), "--served-model-name", MODEL)
    servers = {"stock": Server(logs / "stock", *COMMON, *named, stock=True)}
    try:
        for preset in ("full", "balanced"):
            servers[preset] = Server(logs / preset, "--fastgen", preset, *COMMON)
        for server in servers.values():
            server.wait()
        yield {name: Side(server) for name, server in servers.items()}
    finally:
        for server in servers.values():
            server.stop()


def difference(ours: Any, stocks: Any, where: str = "") -> str | None:
    """Where two answers differ first; logprobs may by rounding."""
    if isinstance(ours, dict) and isinstance(stocks, dict) and ours.keys() == stocks.keys():
        pairs = [(ours[key], stocks[key], f"{where}.{key}") for key in stocks]
    elif isinstance(ours, list) and isinstance(stocks, list) and len(ours) == len(stocks):
        pairs = [(*both, f"{where}[{n}]") for n, both in enumerate(zip(ours, stocks, strict=True))]
    elif isinstance(ours, float) and isinstance(stocks, float):
        close = math.isclose(ours, stocks, rel_tol=0, abs_tol=LOGPROB_ERROR)
        return None if close else f"{where}: {ours}, stock {stocks}"
    else:
        return None if ours == stocks else f"{where}: {ours!r}, stock {stocks!r}"
    return next((found for pair in pairs if (found := difference(*pair))), None)


@pytest.mark.parametrize("name", SHORT_CASES)
@pytest.mark.parametrize("preset", ["full", pytest.param("balanced", marks=pytest.mark.slow)])
def test_short_prompts(preset: str, name: str, sides: dict[str, Side]) -> None:
    case = SHORT_CASES[name]
    assert difference(sides[preset].ask(case), sides["stock"].ask(case)) is None


@pytest.mark.parametrize("name", LONG_CASES)
def test_long_prompts_of_full(name: str, sides: dict[str, Side]) -> None:
    case = LONG_CASES[name]
    assert difference(sides["full"].ask(case), sides["stock"].ask(case)) is None


@pytest.mark.parametrize("name", LONG_CASES)
def test_long_prompts_of_balanced(name: str, sides: dict[str, Side]) -> None:
    ours, stocks = (sides[side].ask(LONG_CASES[name]) for side in ("balanced", "stock"))
    assert difference(shape(ours), shape(stocks)) is None
    if "usage" in stocks["body"]:
        assert ours["body"]["usage"]["prompt_tokens"] == stocks["body"]["usage"]["prompt_tokens"]


@pytest.mark.parametrize("preset", ["full", "balanced"])
def test_the_schema_has_all_of_stock_unchanged(preset: str, sides: dict[str, Side]) -> None:
    ours, stocks = (sides[side].client.get("/openapi.json").json() for side in (preset, "stock"))
    for path in stocks["paths"]:
        assert ours["paths"][path] == stocks["paths"][path]
    for name in (schemas := stocks["components"]["schemas"]):
        assert ours["components"]["schemas"][name] == schemas[name]
    added = ours["paths"].keys() - stocks["paths"].keys()
    assert added and all(path.startswith("/fastgen/") for path in added)


def test_usage_tells_what_was_cached(sides: dict[str, Side]) -> None:
    """Of a cached prompt `full`, which observes the last 256 queries, computes these again."""
    body = {"model": MODEL, "prompt": [700 + n for n in range(700)]}

    def cached(max_tokens: int) -> dict[str, int]:
        asked = body | {"max_tokens": max_tokens}
        found = {}
        for name, side in sides.items():
            usage = side.client.post("/v1/completions", json=asked).json()["usage"]
            found[name] = int(usage["prompt_tokens_details"]["cached_tokens"])
        return found

    assert set(cached(1).values()) == {0}
    for max_tokens in (15, 16):
        assert cached(max_tokens) == {"stock": 672, "full": 416, "balanced": 672}


@pytest.mark.parametrize("preset", ["stock", "full"])
def test_a_wrong_key_is_an_authentication_error(preset: str, sides: dict[str, Side]) -> None:
    client = openai.OpenAI(base_url=f"{sides[preset].server.url}/v1", api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        client.completions.create(model=MODEL, prompt="Hello")


def test_our_own_401_has_openais_shape(sides: dict[str, Side]) -> None:
    for path in ("status", "requests", "heads"):
        answer = httpx.get(f"{sides['full'].server.url}/fastgen/{path}")
        assert answer.status_code == 401
        error = answer.json()["error"]
        assert error["code"] == 401 and "Authorization: Bearer" in error["message"]


def test_async_clients_at_once(sides: dict[str, Side]) -> None:
    """Streams that share every step give what they give alone."""
    prompts = ["One, two,", "The capital of Italy is", LONG]

    async def answers(side: Side) -> list[str]:
        client = openai.AsyncOpenAI(base_url=f"{side.server.url}/v1", api_key=KEY)

        async def stream(prompt: str) -> str:
            chunks = await client.completions.create(
                model=MODEL, prompt=prompt, max_tokens=16, temperature=0, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in chunks])

        return await asyncio.gather(*map(stream, prompts))

    assert asyncio.run(answers(sides["full"])) == asyncio.run(answers(sides["stock"]))


@pytest.mark.parametrize("preset", ["full", "balanced"])
def test_a_client_that_leaves_leaves_nothing(preset: str, sides: dict[str, Side]) -> None:
    client = sides[preset].client
    body = {"model": MODEL, "prompt": LONG, "max_tokens": 900, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as stream:
        next(stream.iter_lines())
        assert client.get("/fastgen/requests").json()["requests"]
    deadline = time.monotonic() + 60
    while client.get("/fastgen/requests").json()["requests"] and time.monotonic() < deadline:
        time.sleep(0.2)
    client.post("/v1/completions", json=body | {"max_tokens": 1, "stream": False})
    assert client.get("/fastgen/requests").json() == {"requests": []}
    pool = client.get("/fastgen/status").json()["pool"]
    assert (pool["running"], pool["waiting"], pool["used_share"]) == (0, 0, 0)
