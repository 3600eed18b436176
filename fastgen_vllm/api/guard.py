"""Checks `fastgen_*` arguments before a request is answered.

vLLM checks them when it starts to generate. A streamed answer has begun by then: its status is 200,
and the mistake arrives as an event. It also has turned true into 1.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm import envs

from fastgen_vllm.api.routes import served_engine
from fastgen_vllm.api.schema import Error, ErrorDetails
from fastgen_vllm.request import PREFIX, RequestOptionError, RequestOptions

_JSON, _FORM = "application/json", "multipart/form-data"
_ARGUMENTS = "vllm_xargs"
#: Keys that lead to arguments: of OpenAI's and Anthropic's endpoints, of `/inference/v1/generate`.
_WAYS = ((_ARGUMENTS,), ("sampling_params", "extra_args"))
#: What is in a body of JSON with arguments: their names, or what may stand for a letter of them.
_HINTS = (PREFIX.encode(), rb"\u00", b"\0")


class ArgumentGuard:
    """ASGI middleware: a bad argument in a body of JSON or in a form is a 400 in OpenAI's shape.

    What it cannot read goes on as it is, and vLLM says what is wrong with it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = _kind(scope)
        if kind not in (_JSON, _FORM) or not served_engine(scope["app"]).is_on:
            return await self._app(scope, receive, send)
        received = _Received(receive)
        if kind == _JSON:
            found = _in_json(await received.body() or b"")
        else:
            found = await _in_form(scope, received)
        for arguments in found:
            try:
                RequestOptions.parse(arguments)
            except RequestOptionError as error:
                return await _refusal(error)(scope, receive, send)
        await self._app(scope, received.replay(), send)


def _kind(scope: Scope) -> str:
    """The content type of a body; empty if there is none."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return ""
    return Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()


class _Received:
    """The messages of a body, which can be received again."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []

    async def body(self, most: float = math.inf) -> bytes | None:
        """Receive up to the end of the body or of the connection; None if it has more bytes."""
        size, more = 0, True
        while more and size <= most:
            message = await self._receive()
            self._messages.append(message)
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        if size > most:
            return None
        return b"".join(message.get("body", b"") for message in self._messages)

    def replay(self) -> Receive:
        """Receive what was received already, then the rest."""
        messages = list(self._messages)

        async def receive() -> Message:
            return messages.pop(0) if messages else await self._receive()

        return receive


def _in_json(body: bytes) -> Iterator[dict[str, Any]]:
    if not any(hint in body for hint in _HINTS):
        return
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return
    for way in _WAYS:
        found: Any = content
        for key in way:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, dict):
            yield found


async def _in_form(scope: Scope, received: _Received) -> Iterator[dict[str, Any]]:
    """The arguments of a form, which has them as text; none of a form that vLLM finds too long."""
    most = 2 * envs.VLLM_MAX_AUDIO_CLIP_FILESIZE_MB * 2**20
    if _ARGUMENTS.encode() not in (await received.body(most) or b""):
        return iter(())
    try:
        async with Request(scope, received.replay()).form() as form:
            given = form.get(_ARGUMENTS)
    except HTTPException:
        return iter(())
    return _in_json(f'{{"{_ARGUMENTS}": {given}}}'.encode())


def _refusal(error: RequestOptionError) -> JSONResponse:
    details = ErrorDetails(
        message=str(error), type="BadRequestError", param=error.parameter, code=400
    )
    return JSONResponse(Error(error=details).model_dump(), status_code=400)
