"""The real engine, in this process, driven step by step so that every request can be watched."""

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# Before vLLM is imported: the engine in this process, and all cores for it.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

from torch import Tensor
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine.llm_engine import LLMEngine

from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.evaluation.forced import FORCED_TOKENS, NUM_SCORED, RECORD_AS, ForcedContinuation
from fastgen_vllm.evaluation.results import MemoryPoint
from fastgen_vllm.integration.options import engine_options
from fastgen_vllm.lifecycle import CompactionPlan
from fastgen_vllm.pages.size import cdiv
from fastgen_vllm.request import ENABLED, RequestOptions
from fastgen_vllm.runtime import FastGenRuntime

_MEMORY_POINTS = 33  # of one request's generation


@dataclass(frozen=True)
class Job:
    """One request.

    Attributes:
        name: unique among the jobs that run together.
        prompt: token ids.
        arguments: its ``extra_args``.
        forced: token ids to follow; None generates freely.
        num_scored: how many of their last are recorded; None is all.
        max_tokens: most tokens to generate freely.
    """

    name: str
    prompt: list[int]
    arguments: tuple[tuple[str, Any], ...] = ()
    forced: list[int] | None = None
    num_scored: int | None = None
    max_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Most tokens that come out."""
        return self.max_tokens if self.forced is None else len(self.forced)


@dataclass
class Outcome:
    """What came of a job."""

    job: Job
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    log_probabilities: Tensor | None = None  # [num_scored, V] float32, of a forced job
    kept: Tensor | None = None  # [L, H, N] bool, kept prompt tokens; None if uncompressed
    policies: list[list[str]] | None = None  # [L][H]; None if uncompressed
    memory: list[MemoryPoint] = field(default_factory=list)

    @property
    def kept_share(self) -> float:
        """Kept prompt tokens over prompt tokens, averaged over heads."""
        return 1.0 if self.kept is None else float(self.kept.float().mean())


#: Prompts are compacted even where no block is saved, below `min_prompt` and `min_answer`, so that
#: what a policy costs is seen at every length.
_ALWAYS = {"force": True, "min_prompt": 0, "min_answer": 1}
#: Whole, though other modes read the same prompt.
_ALONE = {"shared_prefix": "compress"}


class EvaluationEngine:
    """Runs jobs through one engine.

    Every prompt is compacted, whatever it saves. Prefix caching is on: a prompt is prefilled once
    for all its modes.

    Args:
        model: directory or hub name.
        config: the FastGen options of requests whose mode says nothing else.
        dtype: of weights and cache.
        max_model_len: longest prompt and continuation, in tokens.
        pool_bytes: of the KV pool.
        max_running: requests at a time.
        found: share of a prompt that the prefix cache has when it is compressed; if not 0, jobs
            run one after the other.
        found_by: fastgen if a compressed request computed it, or stock.
    """

    def __init__(
        self,
        model: str,
        config: FastGenConfig,
        *,
        dtype: str,
        max_model_len: int,
        pool_bytes: int,
        max_running: int,
        found: float = 0.0,
        found_by: str = "fastgen",
    ) -> None:
        self._found = found
        self._found_by = found_by
        options_of_all = _ALWAYS if found else _ALWAYS | _ALONE
        ours = engine_options(config.model_copy(update=options_of_all))
        ours["logits_processors"].append(f"{__name__.rpartition('.')[0]}.forced:ForcedContinuation")
        options = EngineArgs(
            model=model,
            dtype=dtype,
            # Forced, a compacted request may need a block more than an uncompressed one.
            max_model_len=max_model_len + ours["block_size"],
            max_num_seqs=max_running,
            kv_cache_memory_bytes=pool_bytes,
            enforce_eager=True,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            distributed_executor_backend="uni",
            seed=0,
            **ours,
        )
        self._llm = LLMEngine.from_engine_args(options)
        self._core: Any = self._llm.engine_core.engine_core

    @property
    def _worker(self) -> Any:
        return self._core.model_executor.driver_worker.worker

    @property
    def _runtime(self) -> FastGenRuntime:
        runtime: FastGenRuntime = self._worker._runtime
        return runtime

    @property
    def _forced(self) -> ForcedContinuation:
        for processor in self._worker.model_runner.input_batch.logitsprocs.all:
            if isinstance(processor, ForcedContinuation):
                return processor
        raise AssertionError("the engine was started with it")

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run jobs together and return what came of each, in their order.

        The first job runs its prefill alone: the others, if they have its prompt, find it cached.
        """
        if self._found and len(jobs) > 1:
            return [outcome for job in jobs for outcome in self.run([job])]
        outcomes = [Outcome(job) for job in jobs]
        watched: dict[str, Outcome] = {}
        try:
            for outcome in outcomes:
                if self._found:
                    self._leave_in_cache(outcome.job)
                request_id = self._add(outcome.job)
                watched[request_id] = outcome
                while len(watched) == 1 and self._is_prefilling(request_id):
                    self._step(watched)
            while self._llm.has_unfinished_requests():
                self._step(watched)
        except BaseException:
            self._llm.abort_request([outcome.job.name for outcome in outcomes])
            raise
        for outcome in outcomes:
            _check_plan(outcome)
        return outcomes

    def _leave_in_cache(self, job: Job) -> None:
        """Have the prefix cache hold the first tokens of a job's prompt, and nothing else."""
        self._llm.reset_prefix_cache()
        arguments = {ENABLED: "off"} if self._found_by == "stock" else dict(job.arguments)
        prompt = job.prompt[: int(self._found * len(job.prompt))]
        params = SamplingParams(temperature=0.0, max_tokens=2, extra_args=arguments)
        self._llm.add_request(f"{job.name}/found", {"prompt_token_ids": prompt}, params)
        while self._llm.has_unfinished_requests():
            self._llm.step()

    def close(self) -> None:
        """Give back memory, and vLLM's process groups before another engine makes its own."""
        self._core.shutdown()
        del self._llm, self._core
        gc.collect()

    def _add(self, job: Job) -> str:
        arguments = dict(job.arguments)
        if job.forced is not None:
            scored = len(job.forced) if job.num_scored is None else job.num_scored
            arguments |= {FORCED_TOKENS: job.forced, NUM_SCORED: scored, RECORD_AS: job.name}
        params = SamplingParams(
            temperature=0.0,
            max_tokens=job.num_tokens,
            ignore_eos=job.forced is not None,
            extra_args=arguments,
        )
        self._runtime.expected_plans.expect(job.name)
        internal: str = self._llm.add_request(job.name, {"prompt_token_ids": job.prompt}, params)
        return internal

    def _is_prefilling(self, request_id: str) -> bool:
        request = self._core.scheduler.requests.get(request_id)
        return request is not None and request.num_output_tokens == 0

    def _step(self, watched: dict[str, Outcome]) -> None:
        outputs = self._llm.step()
        for request_id, outcome in watched.items():
            self._check_room(request_id, outcome)
            if outcome.kept is None and self._runtime.planned(request_id) is not None:
                plan = self._runtime.expected_plans.take(outcome.job.name)
                assert plan is not None, "it was expected when the job was added"
                outcome.kept, outcome.policies = plan.choice.keep, _policies(plan)
            self._note_memory(request_id, outcome)
        by_name = {outcome.job.name: outcome for outcome in watched.values()}
        for output in outputs:
            if output.finished:
                outcome = by_name[output.request_id]
                outcome.tokens = list(output.outputs[0].token_ids)
                outcome.text = output.outputs[0].text
                self._runtime.expected_plans.take(output.request_id)  # if none was made
                recording = self._forced.recordings.pop(output.request_id, None)
                if recording is not None:
                    outcome.log_probabilities = recording.log_probabilities()

    def _check_room(self, request_id: str, outcome: Outcome) -> None:
        """Raise ValueError if a compressed request is not compacted, or no longer."""
        request = self._core.scheduler.requests.get(request_id)
        if request is None or outcome.kept is None:
            return
        waits = request.num_output_tokens >= 2 and not self._runtime.is_compacted(request_id)
        if waits or request.num_preemptions:
            raise ValueError("--pool-gib: too small, requests wait for room; give more.")

    def _note_memory(self, request_id: str, outcome: Outcome) -> None:
        request = self._core.scheduler.requests.get(request_id)
        if request is None:
            return
        stored = request.num_computed_tokens
        held = self._runtime.held_by(request_id, stored)
        if held is None:
            return
        generated = request.num_output_tokens
        step = max(1, outcome.job.num_tokens // (_MEMORY_POINTS - 1))
        if outcome.memory and generated < outcome.memory[-1].generated + step:
            return
        geometry = self._runtime.geometry
        manager = self._core.scheduler.kv_cache_manager
        row = len(manager.get_block_ids(request_id)[0])
        stock = cdiv(stored, geometry.block_size)
        outcome.memory.append(
            MemoryPoint(
                generated=generated,
                slots=held.slots / (stored * geometry.pages_per_block),
                pages=held.pages / (stock * geometry.pages_per_block),
                blocks=row / stock,
            )
        )


def _check_plan(outcome: Outcome) -> None:
    """Raise ValueError if a job that was to be compressed was not: its numbers would deceive."""
    options = RequestOptions.parse(dict(outcome.job.arguments))
    if options.enabled and outcome.kept is None:
        raise ValueError(
            f"--preset: its policy failed on {outcome.job.name}; the log says how. Mend the policy."
        )


def _policies(plan: CompactionPlan) -> list[list[str]]:
    names = [policy.name for policy in plan.choice.policies]
    return [[names[index] for index in layer] for layer in plan.choice.index.tolist()]
