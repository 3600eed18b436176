"""Checks `fastgen_*` arguments before a request is answered.

vLLM checks them when it starts to generate. A streamed answer has begun by then: its status is 200,
and the mistake arrives as an event. It also has turned true into 1.
"""

import json
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastgen_vllm.api.routes import served_engine
from fastgen_vllm.api.schema import Error, ErrorDetails
from fastgen_vllm.request import RequestOptionError, RequestOptions

_ARGUMENTS = "vllm_xargs"


class ArgumentGuard:
    """ASGI middleware: a bad argument in a JSON body is a 400 in OpenAI's shape.

    What it cannot read goes on as it is, and vLLM says what is wrong with it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _may_have_arguments(scope):
            return await self._app(scope, receive, send)
        received, body = await _receive_body(receive)
        if (error := _find_error(body)) is not None:
            return await _refusal(error)(scope, receive, send)

        async def receive_again() -> Message:
            return received.pop(0) if received else await receive()

        return await self._app(scope, receive_again, send)


def _may_have_arguments(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    content_type = Headers(scope=scope).get("content-type", "")
    return content_type.startswith("application/json") and served_engine(scope["app"]).is_on


async def _receive_body(receive: Receive) -> tuple[list[Message], bytes]:
    """Return all messages up to the end of the body, or of the connection, and the body."""
    messages = [await receive()]
    while messages[-1].get("more_body", False):
        messages.append(await receive())
    return messages, b"".join(message.get("body", b"") for message in messages)


def _find_error(body: bytes) -> RequestOptionError | None:
    if _ARGUMENTS.encode() not in body:
        return None
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    arguments: Any = content.get(_ARGUMENTS) if isinstance(content, dict) else None
    if not isinstance(arguments, dict):
        return None
    try:
        RequestOptions.parse(arguments)
    except RequestOptionError as error:
        return error
    return None


def _refusal(error: RequestOptionError) -> JSONResponse:
    details = ErrorDetails(
        message=str(error), type="BadRequestError", param=error.parameter, code=400
    )
    return JSONResponse(Error(error=details).model_dump(), status_code=400)
