"""A compacted request that is preempted goes on as if it had not been."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastgen_vllm.config import CoverageOptions, FastGenConfig
from fastgen_vllm.integration.summary import SUMMARY_KEY
from fastgen_vllm.runtime.messages import Uncompacted
from tests.integration.engine import Engine, engine_config
from tests.integration.tiny import random_prompts

ANSWER = 80
PARAMS: dict[str, Any] = dict(max_tokens=ANSWER, detokenize=False)


def make_engine(model: Path, is_async: bool, generated: float = 0, **options: Any) -> Engine:
    fastgen = FastGenConfig(
        when="always",
        policy="coverage",
        keep=0.25,
        min_prompt=64,
        observe=64,
        coverage=CoverageOptions(generated=generated),
    )
    chosen = dict(max_model_len=1024, num_gpu_blocks_override=100, max_num_batched_tokens=128)
    return Engine(
        engine_config(
            model, fastgen, async_scheduling=is_async, skip_tokenizer_init=True, **chosen | options
        )
    )


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def engine(request: pytest.FixtureRequest, tiny_llama: Path) -> Iterator[Engine]:
    made = make_engine(tiny_llama, request.param)
    yield made
    made.close()


def preempt_all(engine: Engine) -> None:
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    engine.check()


def answer(
    engine: Engine, prompt: list[int], preempted_at: tuple[int, ...] = (), **extra: Any
) -> list[int]:
    """Greedy tokens of a request that is preempted when it has so many."""
    due = list(preempted_at)
    request_id = engine.add(prompt, extra_args=extra or None, **PARAMS)
    while engine.llm.has_unfinished_requests():
        for output in engine.step():
            if due and len(output.outputs[0].token_ids) >= due[0]:
                del due[0]
                preempt_all(engine)
    engine.check_drained()
    assert not due
    return engine.finished[request_id].tokens


@pytest.mark.parametrize("generated", ["replace", "keep", 0.5])
def test_a_preempted_answer_is_the_same(engine: Engine, generated: str | float) -> None:
    (prompt,) = random_prompts([400], seed=3)
    undisturbed = answer(engine, prompt, fastgen_generated=generated)
    for moments in ((4,), (40,), (ANSWER - 2,), (30, 33, 60)):
        compactions = engine.stats.compactions
        assert answer(engine, prompt, moments, fastgen_generated=generated) == undisturbed, moments
        assert engine.stats.compactions > compactions


def test_preempted_while_it_is_computed_anew(engine: Engine) -> None:
    """Between its prompt and its compaction, and in the middle of its answer."""
    (prompt,) = random_prompts([400], seed=3)
    undisturbed = answer(engine, prompt)
    for steps in (1, 4, 5, 6, 20):
        request_id = engine.add(prompt, **PARAMS)
        while len(tokens_of(engine, request_id)) < 40:
            engine.step()
        preempt_all(engine)
        for _ in range(steps):
            engine.step()
        preempt_all(engine)
        assert engine.run()[request_id].tokens == undisturbed, steps


def test_preempted_in_the_step_of_its_compaction(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool is short for others just then: nothing is carried out, and nothing counted."""
    (prompt,) = random_prompts([400], seed=3)
    undisturbed = answer(engine, prompt)
    scheduler, compactions = engine.scheduler, engine.stats.compactions
    compact, preempted = scheduler._compact_pending, []

    def compact_and_preempt(manager: Any) -> Any:
        orders = compact(manager)
        if orders and not preempted:
            request = scheduler.requests[orders[0].request_id]
            scheduler.running.remove(request)  # as vLLM does later in schedule()
            scheduler._preempt_request(request, time.monotonic())
            preempted.append(request)
        return orders

    monkeypatch.setattr(scheduler, "_compact_pending", compact_and_preempt)
    assert answer(engine, prompt) == undisturbed
    assert preempted and engine.stats.compactions == compactions + 1


def tokens_of(engine: Engine, request_id: str) -> list[int]:
    requests = engine.scheduler.requests
    internal = next(i for i in requests if i.startswith(f"{request_id}-"))
    return list(requests[internal].output_token_ids)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_answers_do_not_depend_on_a_full_pool(tiny_llama: Path, is_async: bool) -> None:
    """Preempted by each other, in a pool for two prompts, they answer as in a large one."""
    prompts = random_prompts([400, 380, 420, 300], seed=5)
    answers, preemptions = [], []
    for blocks in (200, 30):
        options: dict[str, Any] = dict(num_gpu_blocks_override=blocks, max_model_len=768)
        engine = make_engine(tiny_llama, is_async, 1.0, **options)
        try:
            ids = [engine.add(prompt, **PARAMS | {"max_tokens": 150}) for prompt in prompts]
            done = engine.run()
            answers.append([done[i].tokens for i in ids])
            preemptions.append(engine.preemptions)
        finally:
            engine.close()
    assert preemptions[0] == 0 < preemptions[1]
    assert answers[0] == answers[1]


def test_seeded_answers_are_the_same(tiny_llama: Path) -> None:
    """What is drawn for tokens that are known already is not taken from the request's own dice."""
    engine = make_engine(tiny_llama, False)
    try:
        (prompt,) = random_prompts([400], seed=3)
        answers = []
        for moment in (None, 30):
            request_id = engine.add(prompt, **PARAMS, temperature=1.0, seed=11)
            while engine.llm.has_unfinished_requests():
                for output in engine.step():
                    if len(output.outputs[0].token_ids) == moment:
                        preempt_all(engine)
            answers.append(engine.finished[request_id].tokens)
        assert answers[0] == answers[1]
    finally:
        engine.close()


def end_uncompacted(engine: Engine, end: Callable[[Engine, str], None]) -> dict[str, Any] | None:
    """Compact a request, preempt it and end it; return its summary."""
    (prompt,) = random_prompts([400], seed=4)
    request_id = engine.add(prompt, **PARAMS, extra_args={"fastgen_report": "on"})
    while engine.stats.compactions == 0 or len(tokens_of(engine, request_id)) < 5:
        engine.step()
    preempt_all(engine)
    summaries = []
    finish = engine.scheduler._free_request

    def noting(request: Any, *args: Any, **kwargs: Any) -> Any:
        answers = finish(request, *args, **kwargs)
        summaries.append(answers[0])
        return answers

    engine.scheduler._free_request = noting
    end(engine, request_id)
    engine.run()
    (summary,) = summaries
    return None if summary is None else summary[SUMMARY_KEY]


def test_what_became_of_it_is_known(engine: Engine) -> None:
    """Compacted, preempted and aborted: it ended uncompacted, and is counted as such."""
    summary = end_uncompacted(engine, lambda engine, request: engine.llm.abort_request([request]))
    assert summary is not None and summary["preemptions"] == 1
    assert summary["uncompacted_because"] == Uncompacted.FINISHED_FIRST
    assert (summary["kept_share"], summary["policies"]) == (1.0, {})
    assert engine.stats.compactions == 1
    assert engine.stats.uncompacted == {"finished_first": 1}
