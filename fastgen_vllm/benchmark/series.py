"""A worker's measurement of ``steps``: decode steps of one engine at several sizes."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pydantic import BaseModel

from fastgen_vllm.benchmark.options import MAX_BATCHED_TOKENS
from fastgen_vllm.benchmark.prompts import text_prompts
from fastgen_vllm.benchmark.results import Load, Sample
from fastgen_vllm.benchmark.stepped import EngineSettings, Step, SteppedEngine
from fastgen_vllm.models.tokenizer import load_tokenizer

#: Steps after the last prefill that are not counted: compactions are carried out in them.
SETTLING_STEPS = 3


class Point(BaseModel):
    """What to measure: decode steps of so many requests of about such a length."""

    context: int  # tokens that no request exceeds
    running: int  # requests

    @property
    def load(self) -> Load:
        """The point as results name it."""
        return Load(context=self.context, running=self.running)

    def spare(self) -> int:
        """Steps that its first request may decode before all are ready to be measured."""
        return math.ceil(self.context * self.running / MAX_BATCHED_TOKENS) + SETTLING_STEPS + 2

    def prompt_len(self, steps: int) -> int:
        """Tokens of a prompt, such that no request exceeds the context."""
        return self.context - self.spare() - steps


class Settings(EngineSettings):
    """Points to measure, one after the other."""

    points: list[Point]
    steps: int  # decode steps to measure at each


@dataclass(frozen=True)
class StepMetrics:
    """Decode steps with a fixed number of requests of about a length."""

    decode_step_ms: float  # median
    host_ms: float  # of it, what FastGen's metadata and orders take; median
    kept_tokens: float  # of each prompt, mean over heads and requests
    prompt_tokens: float
    blocks: float  # of each request
    prefill_seconds: float  # of all requests
    profiling_seconds: float
    compaction_seconds: float
    threads: float


def measure(settings: Settings) -> list[Sample]:
    """Measure all points in this process."""
    tokenizer = load_tokenizer(settings.model)
    engine = SteppedEngine(settings)
    samples: list[Sample] = []
    for point in settings.points:
        prompts = text_prompts(
            tokenizer, point.running, point.prompt_len(settings.steps), settings.seed
        )
        if not samples:
            engine.warm_up(prompts[0])
        samples.append(_measure(engine, point, prompts, settings.steps))
    return samples


def _measure(
    engine: SteppedEngine, point: Point, prompts: Sequence[list[int]], steps: int
) -> Sample:
    names = [f"{point.load.label} {number}" for number in range(point.running)]
    for name, prompt in zip(names, prompts, strict=True):
        engine.add(name, prompt, point.spare() + steps)
    taken: list[Step] = []
    while count_measured(taken, point.running) < steps + SETTLING_STEPS:
        if not engine.has_unfinished:
            raise ValueError(f"{point.load.label}: requests ended before all decoded together.")
        taken.append(engine.step())
    compression = engine.take_compression()
    engine.abort(names)
    measured = taken[-steps:]
    # A plan that saves no block is not carried out: then the request keeps everything.
    share = compression.kept_share
    compacted = min(1.0, compression.compactions / point.running)
    length = len(prompts[0])
    metrics = StepMetrics(
        decode_step_ms=statistics.median(step.milliseconds for step in measured),
        host_ms=statistics.median(step.host_ms for step in measured),
        kept_tokens=length * (compacted * share + 1 - compacted),
        prompt_tokens=length,
        blocks=measured[-1].blocks / point.running,
        prefill_seconds=sum(step.end - step.start for step in taken if step.prefilled),
        profiling_seconds=compression.profiling_seconds,
        compaction_seconds=compression.compaction_seconds,
        threads=engine.threads,
    )
    return Sample(load=point.load, metrics=asdict(metrics))


def count_measured(steps: Sequence[Step], running: int) -> int:
    """How many of the latest steps, without a break, only decoded all requests."""
    count = 0
    for step in reversed(steps):
        if step.prefilled or step.decoded < running:
            break
        count += 1
    return count
