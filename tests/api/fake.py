"""A server whose engine answers from memory: vLLM's handlers, our routes."""

import asyncio
import tempfile
from argparse import Namespace
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.renderers import renderer_from_config
from vllm.renderers.online_renderer import OnlineRenderer

from fastgen_vllm.api import plugin
from fastgen_vllm.config import CONFIG_KEY, load_config
from tests.evaluation.tiny import save_tiny_chat

HEADS = {"prompts": 2, "kept_share": [[0.5]], "recovery": [[0.9]], "policies": {"full": [[2]]}}
REQUEST = {
    "id": "cmpl-1",
    "prompt_tokens": 700,
    "stored_tokens": 710,
    "blocks": 9,
    "blocks_shared": 2,
    "blocks_uncompressed": 23,
    "compacted": True,
    "kept_share": 0.3,
    "policies": {"coverage": 6},
}


class Client:
    """Stands in for vLLM's ``EngineClient``; every head keeps the first two tokens."""

    def __init__(self, fastgen: str | None) -> None:
        additional: dict[str, Any] = {}
        if fastgen is not None:
            additional[CONFIG_KEY] = load_config(fastgen).model_dump(mode="json")
        self.vllm_config = SimpleNamespace(
            additional_config=additional,
            cache_config=SimpleNamespace(num_gpu_blocks=100, block_size=32),
            model_config=SimpleNamespace(model="path/of/model", max_model_len=2048),
        )
        self.expected: list[str] = []
        self.generated: list[tuple[list[int], Any]] = []
        self.fails = False
        self.computes: asyncio.Event | None = None  # set when a prompt is, which takes for ever
        self.stops = self.errored = False
        self.paused: bool | Exception | None = False  # None: busy, no answer comes

    async def is_paused(self) -> bool:
        if self.paused is None:
            await asyncio.sleep(3600)
        if isinstance(self.paused, Exception):
            raise self.paused
        return bool(self.paused)

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        if self.stops:
            self.errored = True
            await asyncio.Event().wait()
        if method == "fastgen_heads":
            return [HEADS]
        if method == "fastgen_requests":
            return [[REQUEST]]
        if method == "fastgen_expect":
            self.expected.append(args[0])
            return [None]
        assert method == "fastgen_take"
        self.expected.remove(args[0])
        heads = [["full", "full"]] * 3
        return [{"policy": heads, "recovery": [[1.0, 0.5]] * 3, "kept": [[[0, 1], [0]]] * 3}]

    async def generate(self, prompt: Any, params: Any, request_id: str) -> AsyncIterator[None]:
        assert self.expected == [request_id]
        if self.fails:
            raise ValueError("This model takes at most 16 tokens.")
        self.generated.append((prompt["prompt_token_ids"], params))
        if self.computes is not None:
            self.computes.set()
            await asyncio.Event().wait()
        yield None


@cache
def _config() -> Any:
    with tempfile.TemporaryDirectory() as directory:
        model = save_tiny_chat(Path(directory))
        config = EngineArgs(model=str(model), max_model_len=4096).create_engine_config()
        return config.model_config, renderer_from_config(config)


def tiny_renderer(chat_template: str | None = None) -> OnlineRenderer:
    """vLLM's own, of a tiny model.

    Args:
        chat_template: of the server, in place of the tokenizer's.
    """
    model_config, renderer = _config()
    return OnlineRenderer(
        model_config,
        renderer,
        request_logger=None,
        chat_template=chat_template,
        chat_template_content_format="auto",
    )


def make_app(client: Client, chat_template: str | None = None, **args: Any) -> FastAPI:
    """The application, with vLLM's server arguments of interest."""
    app = FastAPI()
    endpoints = plugin.FastGenEndpoints()
    endpoints.attach_router(app)
    init_exception_handler(app)
    app.state.args = SimpleNamespace(log_error_stack=False)
    app.state.online_renderer = tiny_renderer(chat_template)
    given = Namespace(**({"api_key": None, "served_model_name": None} | args))
    asyncio.run(endpoints.init_state(client, app.state, given))
    return app
