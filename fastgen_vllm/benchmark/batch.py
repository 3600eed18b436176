"""A worker's measurement of ``offline``: chats through one engine, or single requests."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from fastgen_vllm.benchmark.prompts import text_prompts
from fastgen_vllm.benchmark.results import Sample, Timeline
from fastgen_vllm.benchmark.stepped import Compression, EngineSettings, Step, SteppedEngine
from fastgen_vllm.models.tokenizer import load_tokenizer

_TIMELINE_POINTS = 2000


class Settings(EngineSettings):
    """Chats of equal lengths, all there from the start; one of a single turn is a request."""

    num_requests: int
    prompt_len: int  # of the first turn
    output_len: int  # of every answer
    shared_len: int = 0  # first tokens that all prompts have in common
    turns: int = 1
    turn_len: int = 0  # tokens that a further turn asks with


@dataclass
class Chat:
    """A conversation, which goes on with the next turn when it has its answer."""

    number: int
    prompt: list[int]  # of the turn that runs: all that was said, and what is asked now
    to_ask: list[list[int]]  # in the further turns
    output_len: int
    turn: int = 0
    answer: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the turn's request."""
        return f"{self.number}.{self.turn}"

    def hear(self, tokens: Sequence[int]) -> bool:
        """Take tokens of the answer; return whether another turn begins."""
        self.answer += tokens
        if len(self.answer) < self.output_len or not self.to_ask:
            return False
        self.prompt = [*self.prompt, *self.answer, *self.to_ask.pop(0)]
        self.turn, self.answer = self.turn + 1, []
        return True


@dataclass(frozen=True)
class BatchMetrics:
    """What a batch came to. Times to tokens include waiting."""

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
    chats = _chats(settings)
    engine = SteppedEngine(settings)
    engine.warm_up(chats[0].prompt)
    added: dict[str, float] = {}

    def add(chat: Chat) -> None:
        added[chat.name] = time.perf_counter()
        engine.add(chat.name, chat.prompt, settings.output_len)

    for chat in chats:
        add(chat)
    by_name = {chat.name: chat for chat in chats}
    steps = []
    while engine.has_unfinished:
        steps.append(engine.step())
        for name, tokens in steps[-1].produced:
            chat = by_name[name]
            if chat.hear(tokens):
                by_name[chat.name] = chat
                add(chat)
    return summarize(steps, added, engine.take_compression(), engine.preemptions, engine.threads)


def _chats(settings: Settings) -> list[Chat]:
    first, more = settings.prompt_len, settings.turn_len
    length = first + more * (settings.turns - 1)
    tokenizer = load_tokenizer(settings.model)
    texts = text_prompts(
        tokenizer, settings.num_requests, length, settings.seed, settings.shared_len
    )
    return [
        Chat(
            number,
            text[:first],
            [text[begin : begin + more] for begin in range(first, length, more or 1)],
            settings.output_len,
        )
        for number, text in enumerate(texts)
    ]


def summarize(
    steps: Sequence[Step],
    added: Mapping[str, float],
    compression: Compression,
    preemptions: int,
    threads: int,
) -> Sample:
    """Sum up the steps of a batch.

    Args:
        added: when each request was, in seconds of time.perf_counter.
    """
    start, end = steps[0].start, steps[-1].end
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for step in steps:
        for name, produced in step.produced:
            first.setdefault(name, step.end)
            last[name] = step.end
            tokens[name] = tokens.get(name, 0) + len(produced)
    further = [(last[n] - first[n]) / (tokens[n] - 1) for n in tokens if tokens[n] > 1]
    decodes = [step.milliseconds for step in steps if not step.prefilled]
    metrics = BatchMetrics(
        output_throughput=sum(tokens.values()) / (end - start),
        ttft_ms=1e3 * statistics.median(first[name] - added[name] for name in first),
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
