"""A client that asks, waits or hangs up."""

import asyncio
import json

import httpx

from tests.soak.answers import Answer, Json
from tests.soak.requests import Request

#: Seconds for an answer. A server whose pool is too small lets requests wait, but not for ever.
ANSWER_SECONDS = 300.0
JSON = {"Content-Type": "application/json"}


class Lost(Exception):
    """A request that got no whole answer; the message says why."""


class Client:
    """Any number of requests at a time to one server.

    Args:
        url: of the server.
        transport: something else than the network, for tests.
    """

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=ANSWER_SECONDS,
            # An idle connection may be closed by the server just as it is used again.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            transport=transport,
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> httpx.Response:
        """Answer of a GET.

        Raises:
            Lost: none came, or an error.
        """
        try:
            return (await self._http.get(path)).raise_for_status()
        except httpx.HTTPError as error:
            raise Lost(f"GET {path}: {error!r}") from None

    async def ask(self, request: Request) -> Answer | None:
        """The answer; None if the client hung up before its end.

        Raises:
            Lost: the connection broke, or the answer did not end in time.
        """
        try:
            async with asyncio.timeout(request.patience or ANSWER_SECONDS):
                return await self._ask(request)
        except httpx.HTTPError as error:
            raise Lost(f"lost: {error!r}") from None
        except TimeoutError:
            if request.patience is None:
                raise Lost(f"lost: no end in {ANSWER_SECONDS:.0f} s") from None
            return None

    async def _ask(self, request: Request) -> Answer:
        posted = self._http.stream("POST", request.path, content=request.content, headers=JSON)
        async with posted as response:
            answer = Answer(response.status_code)
            if response.headers.get("content-type", "").startswith("text/event-stream"):
                async for line in response.aiter_lines():
                    _read_line(line, answer)
            else:
                answer.body = _object(await response.aread())
                answer.add(answer.body)
                answer.ended = True
        return answer


def _read_line(line: str, answer: Answer) -> None:
    data = line.removeprefix("data: ")
    if data == "[DONE]":
        answer.ended = True
    elif data.startswith("{"):
        answer.add(json.loads(data))


def _object(raw: bytes) -> Json:
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
