"""An engine in this process, driven step by step. For workers only: it imports vLLM when made."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel

from fastgen_vllm.benchmark.engines import Engine
from fastgen_vllm.benchmark.options import BLOCK_SIZE, MAX_BATCHED_TOKENS

_WARM_UP_PROMPT, _WARM_UP_OUTPUT = 544, 16  # tokens; long enough to be profiled and compacted


class EngineSettings(BaseModel):
    """Everything but FastGen that an engine is started with: equal on all sides."""

    engine: Engine
    model: str  # directory or hub name
    dtype: str
    enforce_eager: bool
    max_model_len: int
    max_running: int
    pool_bytes: int
    seed: int
    prefix_caching: bool = False


class Step(NamedTuple):
    """One step of the engine."""

    start: float  # seconds of time.perf_counter
    end: float
    prefilled: int  # tokens of prompts, or of what a preempted request has to compute again
    decoded: int  # requests that went on by a token
    running: int  # requests after the step
    blocks: int  # in use after the step
    produced: tuple[tuple[str, tuple[int, ...]], ...]  # names, and tokens that came out
    host_ms: float = 0.0  # what FastGen's orders, metadata and plans took of it

    @property
    def milliseconds(self) -> float:
        """How long it took."""
        return 1e3 * (self.end - self.start)


class Compression(NamedTuple):
    """What FastGen did; zeros and no shares for the other engines."""

    profiling_seconds: float
    compaction_seconds: float
    compactions: int
    kept_share: float  # of prompts, mean of plans


class SteppedEngine:
    """vLLM's engine; FastGen is on if the side has it."""

    def __init__(self, settings: EngineSettings) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        from fastgen_vllm import llm_options

        options: dict[str, Any] = dict(
            model=settings.model,
            dtype=settings.dtype,
            enforce_eager=settings.enforce_eager,
            block_size=BLOCK_SIZE,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_running,
            max_num_batched_tokens=max(MAX_BATCHED_TOKENS, settings.max_running),
            kv_cache_memory_bytes=settings.pool_bytes,
            enable_prefix_caching=settings.prefix_caching,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            distributed_executor_backend="uni",
            seed=0,
        )
        if settings.engine.fastgen is not None:
            options["additional_config"] = settings.engine.changes
            options = llm_options(settings.engine.fastgen, **options)
        self._llm = LLMEngine.from_engine_args(EngineArgs(**options))
        self._scheduler = self._llm.engine_core.engine_core.scheduler
        self._is_compressing = settings.engine.fastgen is not None
        self._longest = settings.max_model_len
        self._preemptions: dict[str, int] = {}
        self._prefilled = self._decoded = 0
        self._stock_schedule = self._scheduler.schedule
        self._scheduler.schedule = self._schedule
        self._host_seconds = 0.0
        worker = self._llm.engine_core.engine_core.model_executor.driver_worker.worker
        if getattr(worker, "_runtime", None) is not None:
            self._time_host_work(worker, "_carry_out")
            self._time_host_work(worker._runtime, "plan_step")
            self._time_host_work(worker._runtime, "finish_step")

    @property
    def threads(self) -> int:
        """Threads that PyTorch, vLLM's kernels and ours compute with."""
        import torch

        return torch.get_num_threads()

    @property
    def preemptions(self) -> int:
        """How often requests were preempted since the warm-up."""
        return sum(self._preemptions.values())

    @property
    def has_unfinished(self) -> bool:
        """Whether there is something to do."""
        return bool(self._llm.has_unfinished_requests())

    def warm_up(self, prompt: list[int]) -> None:
        """Run the beginning of a prompt, and forget what it did to the statistics."""
        tokens = min(_WARM_UP_PROMPT, len(prompt), self._longest - _WARM_UP_OUTPUT)
        self.add("warm-up", prompt[: max(1, tokens)], _WARM_UP_OUTPUT)
        while self.has_unfinished:
            self.step()
        self._preemptions.clear()
        self.take_compression()
        if not self._scheduler.reset_prefix_cache():
            raise AssertionError("something still reads the warm-up's blocks")

    def add(self, name: str, prompt: list[int], output_tokens: int) -> None:
        """Queue a request that generates exactly so many tokens."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            temperature=0,
            max_tokens=output_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._llm.add_request(name, {"prompt_token_ids": prompt}, parameters)

    def step(self) -> Step:
        """Run one step."""
        self._prefilled = self._decoded = 0
        self._host_seconds = 0.0
        start = time.perf_counter()
        outputs = self._llm.step()
        end = time.perf_counter()
        for request in self._scheduler.requests.values():
            self._preemptions[request.request_id] = request.num_preemptions
        pool = self._scheduler.kv_cache_manager.block_pool
        return Step(
            start,
            end,
            self._prefilled,
            self._decoded,
            len(self._scheduler.running),
            pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(),
            tuple((out.request_id, tuple(out.outputs[0].token_ids)) for out in outputs),
            1e3 * self._host_seconds,
        )

    def abort(self, names: Sequence[str]) -> None:
        """Drop requests; their blocks are free when the engine has nothing left to do."""
        self._llm.abort_request(list(names))
        while self.has_unfinished:
            self.step()

    def take_compression(self) -> Compression:
        """What FastGen did since this was last asked."""
        if not self._is_compressing:
            return Compression(0.0, 0.0, 0, 1.0)
        from fastgen_vllm.integration.metrics import FastGenStats

        stats: FastGenStats = self._scheduler.stats
        self._scheduler.stats = FastGenStats()
        return Compression(
            stats.profiling_seconds, stats.compaction_seconds, stats.compactions, stats.kept_share
        )

    def _time_host_work(self, owner: Any, name: str) -> None:
        method = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = method(*args, **kwargs)
            self._host_seconds += time.perf_counter() - start
            return result

        setattr(owner, name, timed)

    def _schedule(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's own, and note what kind of step it makes."""
        output = self._stock_schedule(*args, **kwargs)
        for request_id, tokens in output.num_scheduled_tokens.items():
            if tokens > 1 or self._scheduler.requests[request_id].num_output_tokens == 0:
                self._prefilled += tokens
            else:
                self._decoded += 1
        return output
