"""A worker's measurement of ``offline``: a batch of requests through one engine."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fastgen_vllm.benchmark.prompts import text_prompts
from fastgen_vllm.benchmark.results import Sample, Timeline
from fastgen_vllm.benchmark.stepped import Compression, EngineSettings, Step, SteppedEngine
from fastgen_vllm.models.tokenizer import load_tokenizer

_TIMELINE_POINTS = 2000


class Settings(EngineSettings):
    """A batch of requests of equal lengths, all there from the start."""

    num_requests: int
    prompt_len: int
    output_len: int
    shared_len: int = 0  # first tokens that all prompts have in common


@dataclass(frozen=True)
class BatchMetrics:
    """What a batch came to. Times to tokens include waiting: all requests are added at once."""

    output_throughput: float  # tokens per second
    ttft_ms: float  # time to the first token, median over requests
    tpot_ms: float  # time per further token, median over requests
    peak_running: float
    mean_running: float  # over steps
    preemptions: float
    peak_blocks: float
    computed_tokens: float  # of prompts, and of what preempted requests compute again
    kept_share: float  # of prompts, mean over requests that were profiled; 1 without FastGen
    seconds: float
    prefill_seconds: float  # of steps that computed prompts, whole or in part
    decode_step_ms: float  # median of the other steps
    profiling_seconds: float
    compaction_seconds: float
    threads: float


def measure(settings: Settings) -> Sample:
    """Run the batch in this process."""
    prompts = text_prompts(
        *(load_tokenizer(settings.model), settings.num_requests, settings.prompt_len),
        *(settings.seed, settings.shared_len),
    )
    engine = SteppedEngine(settings)
    engine.warm_up(prompts[0])
    for number, prompt in enumerate(prompts):
        engine.add(str(number), prompt, settings.output_len)
    steps = []
    while engine.has_unfinished:
        steps.append(engine.step())
    return summarize(steps, engine.take_compression(), engine.preemptions, engine.threads)


def summarize(
    steps: Sequence[Step], compression: Compression, preemptions: int, threads: int
) -> Sample:
    """Sum up the steps of a batch, the first of which began when all requests were there."""
    start, end = steps[0].start, steps[-1].end
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for step in steps:
        for name, count in step.produced:
            first.setdefault(name, step.end)
            last[name] = step.end
            tokens[name] = tokens.get(name, 0) + count
    further = [(last[n] - first[n]) / (tokens[n] - 1) for n in tokens if tokens[n] > 1]
    decodes = [step.milliseconds for step in steps if not step.prefilled]
    metrics = BatchMetrics(
        output_throughput=sum(tokens.values()) / (end - start),
        ttft_ms=1e3 * statistics.median(moment - start for moment in first.values()),
        tpot_ms=1e3 * statistics.median(further or [0.0]),
        peak_running=max(step.running for step in steps),
        mean_running=statistics.mean(step.running for step in steps),
        preemptions=preemptions,
        peak_blocks=max(step.blocks for step in steps),
        computed_tokens=sum(step.prefilled for step in steps),
        kept_share=compression.kept_share,
        seconds=end - start,
        prefill_seconds=sum(step.end - step.start for step in steps if step.prefilled),
        decode_step_ms=statistics.median(decodes or [0.0]),
        profiling_seconds=compression.profiling_seconds,
        compaction_seconds=compression.compaction_seconds,
        threads=threads,
    )
    shown = steps[:: -(-len(steps) // _TIMELINE_POINTS)]
    timeline = Timeline(
        seconds=[round(step.end - start, 4) for step in shown],
        blocks=[step.blocks for step in shown],
        running=[step.running for step in shown],
    )
    return Sample(metrics=asdict(metrics), timeline=timeline)
