"""What operators want of every answer and of the end, and vLLM's server leaves out."""

from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Seconds after which a client that was refused for lack of room may try again.
RETRY_SECONDS = 5
#: Seconds that connections have to end once the engine has stopped.
CLOSING_SECONDS = 5


class Operations:
    """ASGI middleware.

    Answers of 503 say when to try again (``Retry-After``). And a server whose engine stopped
    before its streams were done ends: vLLM would wait for them without end.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            _limit_closing(scope)
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_hint(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 503:
                MutableHeaders(scope=message).setdefault("Retry-After", str(RETRY_SECONDS))
            await send(message)

        await self._app(scope, receive, send_with_hint)


def _limit_closing(scope: Scope) -> None:
    """Give connections an end; vLLM sets no option of uvicorn for it."""
    server: Any = getattr(scope["app"].state, "server", None)
    if server is not None and server.config.timeout_graceful_shutdown is None:
        server.config.timeout_graceful_shutdown = CLOSING_SECONDS
