"""The routes below ``/fastgen``."""

import asyncio
from collections.abc import Callable, Coroutine
from importlib.resources import files
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as StarletteHTTPException

from fastgen_vllm.api.engine import Engine
from fastgen_vllm.api.schema import Error, Heads, Profile, ProfileRequest, Ready, Running, Status

STATE_KEY = "fastgen"
#: nginx's status for its log; nobody receives it
_CLIENT_HAS_GONE = 499
_T = TypeVar("_T")

#: The page brings everything with it and asks only the server that it came from.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
)


def served_engine(app: FastAPI) -> Engine:
    """The engine that the plugin left with the application."""
    engine: Engine = getattr(app.state, STATE_KEY)
    return engine


def engine_of(request: Request) -> Engine:
    """The engine, for requests that carry the server's API key.

    Raises:
        HTTPException: 401 without the key.
    """
    engine = served_engine(request.app)
    if not engine.admits(request.headers):
        raise HTTPException(
            401, "this server wants its API key: send the header Authorization: Bearer KEY"
        )
    return engine


async def while_connected(request: Request, work: Coroutine[Any, Any, _T]) -> _T | None:
    """Do work for a client whose whole request was read; None if it is called off.

    It is when the client hangs up: there is nobody to tell, and others wait for the engine.
    """
    doing = asyncio.ensure_future(work)
    hanging_up = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({doing, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        doing.cancel()
        hanging_up.cancel()
        await asyncio.gather(doing, hanging_up, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


AnEngine = Annotated[Engine, Depends(engine_of)]
_UNAUTHORIZED: dict[int | str, dict[str, Any]] = {
    401: {"model": Error, "description": "the API key is missing or wrong"}
}
_STOPPED: dict[int | str, dict[str, Any]] = {
    503: {"model": Error, "description": "the engine has stopped"}
}
_BAD_REQUEST: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "the prompt or an argument is not allowed"}
}
_UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: {"model": Error, "description": "no request would be computed now"}
}


class _Route(APIRoute):
    """A route all of whose errors have OpenAI's shape.

    For a body that is no text FastAPI raises Starlette's error, which vLLM gives no shape.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def shaped(request: Request) -> Response:
            try:
                return await handle(request)
            except StarletteHTTPException as error:
                raise HTTPException(error.status_code, error.detail) from error

        return shaped


router = APIRouter(prefix="/fastgen", tags=["FastGen"], route_class=_Route)


@router.get("/ready", responses=_UNAVAILABLE)
async def ready(request: Request) -> Ready:
    """Whether a new request would be computed now; for probes, without a key."""
    if not await served_engine(request.app).ready():
        raise HTTPException(503, "the engine is paused, is shutting down or has died")
    return Ready()


@router.get("/status", responses=_UNAUTHORIZED)
async def status(engine: AnEngine) -> Status:
    """What is active, versions, pool and totals."""
    return engine.status()


@router.get("/requests", responses=_UNAUTHORIZED | _STOPPED)
async def requests(engine: AnEngine) -> Running:
    """Running requests: prompt length, kept share, policies. Empty if FastGen is off."""
    return await engine.running()


@router.get("/heads", responses=_UNAUTHORIZED | _STOPPED)
async def heads(engine: AnEngine) -> Heads:
    """Per layer and head: policies, mean kept share, recovery. Empty if FastGen is off."""
    return await engine.heads()


@router.post("/profile", response_model=Profile, responses=_UNAUTHORIZED | _BAD_REQUEST | _STOPPED)
async def profile(body: ProfileRequest, engine: AnEngine, request: Request) -> Profile | Response:
    """How a prompt would be compressed, without answering it."""
    found = await while_connected(request, engine.profile(body))
    return Response(status_code=_CLIENT_HAS_GONE) if found is None else found


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """A page that shows all of this. It holds no data: they come from the routes above."""
    text = files("fastgen_vllm.api").joinpath("page.html").read_text("utf-8")
    return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY})
