"""Requests that are left as stock vLLM serves them: nothing is spent on them, nothing is broken."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.v1.core.sched.interface import PauseState

from fastgen_vllm.config import FastGenConfig
from tests.integration.engine import Engine, engine_config
from tests.integration.tiny import VOCAB, random_prompts

PARAMS: dict[str, Any] = dict(detokenize=False)
OPTIONS: dict[str, Any] = dict(
    skip_tokenizer_init=True,
    max_model_len=1024,
    num_gpu_blocks_override=100,
    enable_prompt_embeds=True,
)
#: Lossless, so that an answer over a page stream must be stock's.
FULL = FastGenConfig(policy="full", force=True, min_prompt=64, observe=32, min_answer=4)


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Iterator[Engine]:
    made = Engine(engine_config(tiny_llama, FULL, **OPTIONS))
    yield made
    made.close()


@pytest.fixture(scope="module")
def stock(tiny_llama: Path) -> Iterator[Engine]:
    made = Engine(engine_config(tiny_llama, None, **OPTIONS))
    yield made
    made.close()


def run_session(engine: Engine, chunks: list[list[int]], answer: int) -> list[int]:
    """Send a streaming-input session chunk by chunk; return all tokens of its answers."""
    core = engine.core
    found: list[int] = []

    def send(prompt: list[int], resumable: bool) -> None:
        request = engine.llm.input_processor.process_inputs(
            "session",
            {"prompt_token_ids": list(prompt)},
            SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True, **PARAMS),
            supported_tasks=("generate",),
            resumable=resumable,
        )
        core.add_request(*core.preprocess_add_request(request))

    for chunk in chunks:
        send(chunk, resumable=True)
        for _ in range(answer + 3):
            outputs, _ = core.step_fn()
            for batch in (outputs or {}).values():
                for output in batch.outputs:
                    found.extend(output.new_token_ids)
            engine.check()
    core.abort_requests(["session"])
    for _ in range(2):
        core.step_fn()
    engine.check_drained()
    return found


def test_a_session_answers_as_in_stock(engine: Engine, stock: Engine) -> None:
    chunks = random_prompts([400, 64, 90], seed=7)
    before = engine.stats.compactions
    expected = run_session(stock, chunks, 8)
    assert len(expected) == 24
    assert run_session(engine, chunks, 8) == expected
    assert engine.stats.compactions == before


def test_a_session_is_counted_once_as_off(engine: Engine) -> None:
    before = dict(engine.stats.uncompacted)
    run_session(engine, random_prompts([400, 30], seed=8), 4)
    assert engine.stats.uncompacted == before | {"off": before.get("off", 0) + 1}


def test_a_prompt_of_tokens_and_embeddings(engine: Engine, stock: Engine) -> None:
    """Its placeholders have an id that the vocabulary does not have."""
    (ids,) = random_prompts([200])
    is_token = [not 80 <= position < 100 for position in range(len(ids))]
    ids = [token if real else VOCAB for token, real in zip(ids, is_token, strict=True)]
    embeds = torch.randn(len(ids), 128, generator=torch.Generator().manual_seed(5))
    found = []
    for one in (stock, engine):
        params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, **PARAMS)
        prompt = {"prompt_token_ids": ids, "prompt_embeds": embeds}
        one.llm.add_request("mixed", prompt | {"prompt_is_token_ids": is_token}, params)
        found.append(one.run()["mixed"].tokens)
        assert len(one.run()) > 0
    assert found[0] == found[1] and len(found[0]) == 8


def computed_tokens(engine: Engine, prompts: list[list[int]], **params: Any) -> int:
    """Tokens that the engine computes for these requests."""
    scheduled = [0]
    schedule = engine.scheduler.schedule

    def noting(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        scheduled[0] += output.total_num_scheduled_tokens
        return output

    engine.scheduler.schedule = noting
    try:
        for prompt in prompts:
            engine.add(prompt, **PARAMS | params)
        engine.run()
    finally:
        engine.scheduler.schedule = schedule
    return scheduled[0]


def test_short_answers_cost_what_they_cost_in_stock(engine: Engine, stock: Engine) -> None:
    """Scoring, and each step of a beam: requests of one token, whose prompts are cached."""
    (prompt,) = random_prompts([600], seed=3)
    counts = []
    profiled = engine.runtime.head_totals.to_dict()["prompts"]
    for one in (stock, engine):
        one.scheduler.reset_prefix_cache()
        beams = [prompt + [5 + step] * step for step in range(12)]
        counts.append([computed_tokens(one, [beam] * 3, max_tokens=1) for beam in beams])
    assert counts[0] == counts[1]
    assert engine.runtime.head_totals.to_dict()["prompts"] == profiled
    assert engine.stats.uncompacted["short_answer"] >= 36


def test_how_short_an_answer_is_left_alone(engine: Engine) -> None:
    """By `max_tokens`, and by the room that the model's length leaves."""
    long, longest = random_prompts([300, 1024 - 3], seed=6)
    for prompt, max_tokens, compacted in ((long, 3, 0), (long, 4, 1), (longest, 100, 0)):
        before = engine.stats.compactions
        engine.add(prompt, max_tokens=max_tokens, **PARAMS)
        engine.run()
        assert engine.stats.compactions - before == compacted, (len(prompt), max_tokens)


def test_statistics_do_not_grow_with_requests(engine: Engine) -> None:
    """Nobody takes them here."""
    before = len(engine.stats.kept_percents)
    for prompt in random_prompts([100] * 40, seed=21):
        engine.add(prompt, max_tokens=4, **PARAMS)
    engine.run()
    assert len(engine.stats.kept_percents) <= before + 1


def test_time_of_a_compaction_without_a_forward_pass(engine: Engine) -> None:
    """A step that computes nothing reports with the next one that does."""
    (prompt,) = random_prompts([300], seed=22)
    other = engine.add([5, 6, 7], max_tokens=30, **PARAMS)
    engine.add(prompt, max_tokens=30, **PARAMS)
    while not engine.scheduler._pending:
        engine.step()
    before = engine.stats.compaction_seconds
    engine.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    engine.llm.abort_request([other])  # of which the worker is told, in a step of no tokens
    engine.step()
    assert not engine.scheduler._pending
    engine.scheduler.set_pause_state(PauseState.UNPAUSED)
    engine.run()
    assert engine.stats.compaction_seconds > before
