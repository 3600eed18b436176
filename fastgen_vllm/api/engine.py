"""What the endpoints ask vLLM's engine, through its client."""

import asyncio
import os
from argparse import Namespace
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from fastapi import HTTPException
from starlette.datastructures import Headers
from vllm import SamplingParams
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware
from vllm.v1.metrics.prometheus import get_prometheus_registry

from fastgen_vllm.api.counters import Counters
from fastgen_vllm.api.rendering import RenderedPrompt, Rendering
from fastgen_vllm.api.schema import (
    Heads,
    Pool,
    Profile,
    ProfiledHead,
    ProfileRequest,
    Running,
    RunningRequest,
    Status,
)
from fastgen_vllm.config import CONFIG_KEY, FastGenConfig
from fastgen_vllm.integration.options import config_of
from fastgen_vllm.integration.requests import RequestValidator
from fastgen_vllm.request import RequestOptions
from fastgen_vllm.versions import VLLM_DISTRIBUTIONS, installed_version

#: Seconds to wait for an engine that is busy.
READY_SECONDS = 1.0
#: How often a call looks whether the engine is still there.
_LOOK_SECONDS = 1.0


class Engine:
    """One server's engine.

    Args:
        client: vLLM's ``EngineClient``.
        args: of vLLM's server.
        rendering: of prompts, as this server does it.
    """

    def __init__(self, client: Any, args: Namespace, rendering: Rendering) -> None:
        self._client = client
        self._rendering = rendering
        self._vllm_config = client.vllm_config
        keys = args.api_key or [os.environ.get("VLLM_API_KEY")]
        tokens = [key for key in keys if key]
        self._guard = AuthenticationMiddleware(None, tokens) if tokens else None
        names = args.served_model_name or [self._vllm_config.model_config.model]
        self._model = str(names[0])
        additional = self._vllm_config.additional_config
        #: whether FastGen is on
        self.is_on = isinstance(additional, dict) and CONFIG_KEY in additional
        self._config: FastGenConfig | None = config_of(self._vllm_config) if self.is_on else None

    def admits(self, headers: Headers) -> bool:
        """Whether the request carries the server's API key, if it has one."""
        return self._guard is None or bool(self._guard.verify_token(headers))

    async def ready(self) -> bool:
        """Whether a new request would be computed: the engine runs and is not paused."""
        try:
            return not await asyncio.wait_for(self._client.is_paused(), READY_SECONDS)
        except TimeoutError:  # in the middle of a long step
            return not self._client.errored
        except Exception:  # whatever an engine says that has died or is shutting down
            return False

    def status(self) -> Status:
        """What is active, from configuration and metrics."""
        counters = Counters(get_prometheus_registry().collect())
        cache = self._vllm_config.cache_config
        config = self._config
        return Status(
            active=self.is_on,
            preset=None if config is None else config.name,
            options=None if config is None else config.model_dump(mode="json"),
            model=self._model,
            versions=_versions(),
            pool=Pool(
                blocks=cache.num_gpu_blocks,
                block_size=cache.block_size,
                used_share=counters.largest("vllm:kv_cache_usage_perc"),
                running=int(counters.total("vllm:num_requests_running")),
                waiting=int(counters.total("vllm:num_requests_waiting")),
            ),
            totals=counters.totals(),
        )

    async def running(self) -> Running:
        """Requests that are running; none are known if FastGen is off."""
        found = await self._ask("fastgen_requests")
        return Running(requests=[RunningRequest(**request) for request in found or ()])

    async def heads(self) -> Heads:
        """Heads over all prompts; none are known if FastGen is off."""
        found = await self._ask("fastgen_heads")
        return Heads(**(found or {"prompts": 0, "kept_share": [], "recovery": [], "policies": {}}))

    async def profile(self, request: ProfileRequest) -> Profile:
        """Profile a prompt as a request's would be; its answer ends with the first token.

        Raises:
            ValueError, VLLMValidationError: the prompt or an argument is not allowed.
        """
        # As long an answer as is worth profiling for.
        max_tokens = 1 if self._config is None else self._config.min_answer
        params = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, extra_args=dict(request.arguments)
        )
        RequestValidator.validate_params(params)
        options = RequestOptions.parse(params.extra_args)
        prompt = await self._rendering.render(request)
        found = None
        if (problem := self._problem(options, len(prompt.tokens))) is None:
            found = await self._plan(prompt, params)
            if found is None:
                problem = "no plan was made: its queries were not observed, or the policy failed"
        return _profile(prompt.texts, found, problem)

    def _problem(self, options: RequestOptions, num_tokens: int) -> str | None:
        if self._config is None:
            return "FastGen is off on this server; start it with --fastgen balanced"
        if not options.enabled:
            return 'the argument fastgen="off" says so'
        if num_tokens < self._config.min_prompt:
            return f"it has fewer than {self._config.min_prompt} tokens (option min_prompt)"
        room = self._vllm_config.model_config.max_model_len - num_tokens
        if room < self._config.min_answer:
            return (
                f"it leaves room for {room} tokens, fewer than {self._config.min_answer} "
                "(option min_answer)"
            )
        return None

    async def _plan(self, prompt: RenderedPrompt, params: SamplingParams) -> dict[str, Any] | None:
        request_id = f"fastgen-profile-{uuid4().hex}"
        try:
            await self._ask("fastgen_expect", request_id)
            answer = self._client.generate(prompt.engine_input, params, request_id)
            async with aclosing(answer):
                async for _ in answer:
                    break
        finally:
            found: dict[str, Any] | None = await self._ask("fastgen_take", request_id)
        return found

    async def _ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of our worker.

        Raises:
            HTTPException: 503, the engine has stopped; vLLM would wait for ever.
        """
        if self._config is None:
            return None
        call = asyncio.ensure_future(self._client.collective_rpc(method, args=arguments))
        try:
            while not call.done():
                if self._client.errored:
                    raise HTTPException(503, "the engine has stopped")
                await asyncio.wait({call}, timeout=_LOOK_SECONDS)
            return call.result()[0]
        finally:
            call.cancel()


def _versions() -> dict[str, str]:
    found = {
        "fastgen-vllm": installed_version("fastgen-vllm"),
        "vllm": installed_version(*VLLM_DISTRIBUTIONS),
        "torch": installed_version("torch"),
    }
    return {name: version for name, version in found.items() if version is not None}


def _profile(texts: list[str], found: dict[str, Any] | None, problem: str | None) -> Profile:
    heads = [] if found is None else _heads(found)
    kept_by = [0] * len(texts) if heads else []
    for layer in heads:
        for head in layer:
            for position in head.kept:
                kept_by[position] += 1
    count = sum(map(len, heads))
    return Profile(
        prompt_tokens=len(texts),
        uncompressed_because=problem,
        kept_share=sum(kept_by) / (count * len(texts)) if heads else 1.0,
        tokens=texts,
        kept_by=kept_by,
        heads=heads,
    )


def _heads(found: dict[str, Any]) -> list[list[ProfiledHead]]:
    return [
        [
            ProfiledHead(policy=policy, recovery=min(1.0, recovery), kept=kept)
            for policy, recovery, kept in zip(*layer, strict=True)
        ]
        for layer in zip(found["policy"], found["recovery"], found["kept"], strict=True)
    ]
