"""An engine in this process, driven step by step, with every invariant checked after each."""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

import pytest
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.v1.engine.llm_engine import LLMEngine

from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.integration.cpu import PerHeadCPUWorker
from fastgen_vllm.integration.metrics import FastGenStats
from fastgen_vllm.integration.options import check_engine_config, engine_options
from fastgen_vllm.integration.scheduler import PerHeadScheduling
from fastgen_vllm.runtime import FastGenRuntime

BLOCK_SIZE = 32


class InOrderWorker(PerHeadCPUWorker):
    """A worker for async scheduling on the CPU.

    vLLM switches async scheduling off on the CPU, because its model runner would use CUDA
    streams. The scheduler's side works: with a runner that returns tokens at once, steps are
    scheduled one ahead of their results, exactly as on a GPU.
    """

    def init_device(self) -> None:
        super().init_device()
        self.model_runner.use_async_scheduling = False


def engine_config(
    model: Path, fastgen: FastGenConfig | None, *, async_scheduling: bool = False, **options: Any
) -> VllmConfig:
    """Build vLLM's configuration for a small, eager engine."""
    chosen: dict[str, Any] = dict(
        model=str(model),
        dtype="float32",
        max_model_len=4096,
        max_num_seqs=64,
        enforce_eager=True,
        block_size=BLOCK_SIZE,
        kv_cache_memory_bytes=2**27,
        disable_log_stats=True,
        distributed_executor_backend="uni",
        seed=0,
    )
    if fastgen is not None:
        chosen |= engine_options(fastgen)
    config = EngineArgs(**(chosen | options)).create_engine_config()
    if fastgen is not None:
        check_engine_config(config)
    if async_scheduling:
        assert fastgen is not None
        config.scheduler_config.async_scheduling = True
        config.parallel_config.worker_cls = f"{__name__}.InOrderWorker"
    return config


@dataclass
class Finished:
    """What came out of one request."""

    tokens: list[int]
    reason: str | None
    logprobs: list[dict[int, float]] = field(default_factory=list)


@contextmanager
def uncollected() -> Iterator[None]:
    """Leave out what makes most of a small engine's start and end: collecting garbage ten times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda generation=2: 0)
        yield


class Engine:
    """Runs requests; ``check`` after every step raises if an invariant is broken."""

    def __init__(self, config: VllmConfig) -> None:
        with uncollected():
            self.llm = LLMEngine.from_vllm_config(config)
        self.core = self.llm.engine_core.engine_core
        self.scheduler = self.core.scheduler
        self.finished: dict[str, Finished] = {}
        self.peak_running = 0
        self._preemptions: dict[str, int] = {}
        self._count = 0

    @property
    def runtime(self) -> FastGenRuntime:
        """The worker's FastGen state."""
        runtime = self.core.model_executor.driver_worker.worker._runtime
        assert runtime is not None
        return runtime

    @property
    def stats(self) -> FastGenStats:
        """What the scheduler counted over the engine's life."""
        return self.scheduler.stats

    @property
    def preemptions(self) -> int:
        """How often requests were preempted so far."""
        return sum(self._preemptions.values())

    def add(
        self,
        prompt: Sequence[int],
        *,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
        **params: Any,
    ) -> str:
        """Queue a prompt of token ids; greedy unless told otherwise."""
        request_id = f"r{self._count}"
        self._count += 1
        chosen = dict(temperature=0.0, max_tokens=24, ignore_eos=True) | params
        self.llm.add_request(
            request_id,
            {"prompt_token_ids": list(prompt)},
            SamplingParams(**chosen),
            lora_request=lora_request,
            priority=priority,
        )
        return request_id

    def step(self) -> list[RequestOutput]:
        """Run one step and check every invariant."""
        outputs = self.llm.step()
        for output in outputs:
            if output.finished:
                done = output.outputs[0]
                logprobs = [
                    {token: entry.logprob for token, entry in step.items()}
                    for step in done.logprobs or ()
                ]
                self.finished[output.request_id] = Finished(
                    list(done.token_ids), done.finish_reason, logprobs
                )
        self.check()
        return outputs

    def check(self) -> None:
        """Raise unless the pool is whole; note what is running."""
        self.peak_running = max(self.peak_running, len(self.scheduler.running))
        for request in self.scheduler.requests.values():
            self._preemptions[request.request_id] = request.num_preemptions
        if not isinstance(self.scheduler, PerHeadScheduling):
            return
        self.scheduler.check_integrity()
        lanes = len(self.runtime._free_lanes)
        held = sum(r.lane is not None for r in self.runtime._requests.values())
        assert lanes + held == self.scheduler.max_num_running_reqs, "a lane leaked"

    def run(self, after_step: Callable[[], None] | None = None) -> dict[str, Finished]:
        """Run until nothing is left; then the whole pool must be free."""
        while self.llm.has_unfinished_requests():
            self.step()
            if after_step is not None:
                after_step()
        self.check_drained()
        return self.finished

    def kept_positions(self, request_id: str) -> list[list[list[int]]] | None:
        """Positions that each head of a compacted request holds, ``[L][H]``; else None."""
        internal = self.internal_id(request_id)
        if internal is None or self.runtime._requests[internal].lane is None:
            return None
        row = self.scheduler.kv_cache_manager.get_block_ids(internal)[0]
        if not row:  # finished in this step
            return None
        return self.runtime.kept_positions(internal, row)

    def internal_id(self, request_id: str) -> str | None:
        """The id that the engine gave to a running request."""
        return next((i for i in self.runtime._requests if i.startswith(f"{request_id}-")), None)

    def check_drained(self) -> None:
        """Raise unless the idle engine holds nothing."""
        pool = self.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1, "blocks leaked"
        if isinstance(self.scheduler, PerHeadScheduling):
            self.scheduler.check_integrity()
            assert not self.scheduler.requests and not self.scheduler._pending

    def close(self) -> None:
        """Give back memory, and vLLM's process groups before the next engine makes its own."""
        with uncollected():
            self.core.shutdown()
            del self.llm
        gc.collect()


def generate(
    config: VllmConfig, prompts: Sequence[Sequence[int]], *, one_by_one: bool = False, **params: Any
) -> tuple[list[Finished], Engine]:
    """Run prompts through a fresh engine; return results in order, and the closed engine."""
    engine = Engine(config)
    try:
        ids = []
        for prompt in prompts:
            ids.append(engine.add(prompt, **params))
            if one_by_one:
                engine.run()
        results = engine.run()
        return [results[request_id] for request_id in ids], engine
    finally:
        engine.close()


def tokens(results: Sequence[Finished]) -> list[list[int]]:
    """Return the tokens of every result."""
    return [result.tokens for result in results]
