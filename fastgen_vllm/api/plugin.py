"""The entry point ``vllm.endpoint_plugins``: vLLM attaches it to its own server.

vLLM loads endpoint plugins only if ``VLLM_PLUGINS`` names them; ``fastgen-vllm serve`` does.
"""

import os
from argparse import Namespace
from importlib.metadata import entry_points
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import State

NAME = "fastgen"
VARIABLE = "VLLM_PLUGINS"
_ALL = "vllm."  # what the names of vLLM's entry point groups begin with
_ENDPOINTS = "vllm.endpoint_plugins"


def allow_endpoints() -> None:
    """Have vLLM load our endpoints, and of all other plugins what it loads anyway.

    ``VLLM_PLUGINS`` is left alone if it is set: who chose plugins chose these, or did not.
    """
    if VARIABLE in os.environ:
        return
    found = entry_points()
    names = {
        point.name
        for group in found.groups
        if group.startswith(_ALL) and group != _ENDPOINTS
        for point in found.select(group=group)
    }
    os.environ[VARIABLE] = ",".join(sorted(names | {NAME}))


class FastGenEndpoints:
    """vLLM's ``EndpointPlugin``."""

    name = NAME
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add our routes, the check of arguments and what operators want to all routes."""
        from fastgen_vllm.api.guard import ArgumentGuard
        from fastgen_vllm.api.operations import Operations
        from fastgen_vllm.api.routes import router

        app.include_router(router)
        app.add_middleware(ArgumentGuard)
        app.add_middleware(Operations)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Keep what the routes need."""
        from fastgen_vllm.api.engine import Engine
        from fastgen_vllm.api.rendering import Rendering
        from fastgen_vllm.api.routes import STATE_KEY

        setattr(state, STATE_KEY, Engine(engine_client, args, Rendering(state.online_renderer)))
