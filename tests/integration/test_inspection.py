"""What the endpoints are told by the worker, beside what the engine holds."""

from pathlib import Path
from typing import Any

import pytest

from fastgen_vllm.config import CoverageOptions, FastGenConfig
from fastgen_vllm.runtime.inspection import external_id
from tests.integration.engine import BLOCK_SIZE, Engine, engine_config
from tests.integration.tiny import random_prompts

LENGTHS = [300, 200]
MOST_STEPS = 50


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def engine(request: pytest.FixtureRequest, tiny_llama: Path) -> Any:
    # Generated tokens are kept, so that no prompt token gives way to one.
    fastgen = FastGenConfig(
        when="always", policy="coverage", keep=0.25, coverage=CoverageOptions(generated=1)
    )
    config = engine_config(
        tiny_llama, fastgen, async_scheduling=request.param, skip_tokenizer_init=True
    )
    made = Engine(config)
    yield made
    made.close()


def ask(engine: Engine, method: str, *arguments: Any) -> Any:
    """As the endpoints do."""
    return engine.core.collective_rpc(method, args=arguments)[0]


def run_until_compacted(engine: Engine, count: int) -> list[dict[str, Any]]:
    for _ in range(MOST_STEPS):
        engine.step()
        running: list[dict[str, Any]] = ask(engine, "fastgen_requests")
        if sum(request["compacted"] for request in running) == count:
            return running
    raise AssertionError(f"not compacted in {MOST_STEPS} steps: {running}")


def test_what_is_shown_is_what_is_held(engine: Engine) -> None:
    prompts = random_prompts(LENGTHS)
    for number in range(2):
        ask(engine, "fastgen_expect", f"r{number}")
    ids = [engine.add(prompt, max_tokens=60, detokenize=False) for prompt in prompts]
    assert ids == ["r0", "r1"]
    running = run_until_compacted(engine, 2)
    plans = [ask(engine, "fastgen_take", request_id) for request_id in ids]
    heads = ask(engine, "fastgen_heads")
    shares = []
    for request_id, length, plan, shown in zip(ids, LENGTHS, plans, running, strict=True):
        held = engine.kept_positions(request_id)
        assert held is not None
        from_prompt = [[[p for p in h if p < length] for h in layer] for layer in held]
        assert plan["kept"] == from_prompt
        shares.append([[len(h) / length for h in layer] for layer in plan["kept"]])
        mean = sum(map(sum, shares[-1])) / 6
        assert shown["id"] == request_id and shown["prompt_tokens"] == length
        assert shown["kept_share"] == pytest.approx(mean, abs=1e-6)
        assert shown["kept_share"] == pytest.approx(0.25, abs=0.02)
        assert sum(shown["policies"].values()) == 6
        assert shown["blocks"] < shown["blocks_uncompressed"]
        assert shown["blocks_uncompressed"] == -(-shown["stored_tokens"] // BLOCK_SIZE)
        assert length <= shown["stored_tokens"] <= length + 60
    assert heads["prompts"] == 2
    for layer in range(3):
        for head in range(2):
            kept = (shares[0][layer][head] + shares[1][layer][head]) / 2
            assert heads["kept_share"][layer][head] == pytest.approx(kept, abs=1e-6)
            recovered = sum(plan["recovery"][layer][head] for plan in plans) / 2
            assert heads["recovery"][layer][head] == pytest.approx(recovered, abs=1e-6)
            assert sum(n[layer][head] for n in heads["policies"].values()) == 2
    assert ask(engine, "fastgen_take", "r0") is None, "it was taken before"
    engine.run()
    engine.llm.step()
    assert ask(engine, "fastgen_requests") == []


def test_uncompressed_requests_are_shown_too(engine: Engine) -> None:
    (prompt,) = random_prompts([300])
    engine.add(prompt, max_tokens=20, detokenize=False, extra_args={"fastgen": "off"})
    engine.step()
    engine.step()
    (shown,) = ask(engine, "fastgen_requests")
    assert (shown["compacted"], shown["kept_share"], shown["policies"]) == (False, None, {})
    assert shown["blocks"] >= shown["blocks_uncompressed"]
    engine.run()


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
def test_what_runs_is_shown_and_what_waits_is_not(tiny_llama: Path, async_scheduling: bool) -> None:
    """Also what has no part in a step, and what was preempted and waits again."""
    fastgen = FastGenConfig(policy="full", force=True)
    options = dict(max_model_len=512, num_gpu_blocks_override=20, skip_tokenizer_init=True)
    engine = Engine(
        engine_config(tiny_llama, fastgen, async_scheduling=async_scheduling, **options)
    )
    try:
        for length, prompt in enumerate(random_prompts([200] * 4)):
            engine.add(prompt, max_tokens=60 + 40 * length, detokenize=False)
        waited_again = 0

        def check() -> None:
            nonlocal waited_again
            shown = {request["id"] for request in ask(engine, "fastgen_requests")}
            running = {external_id(request.request_id) for request in engine.scheduler.running}
            waiting = {external_id(request.request_id) for request in engine.scheduler.waiting}
            assert running <= shown and not waiting & shown
            waited_again += engine.preemptions > 0 and bool(waiting)

        engine.run(check)
        assert waited_again > 0
        engine.llm.step()
        assert ask(engine, "fastgen_requests") == []
    finally:
        engine.close()


def test_what_is_paused_is_shown(engine: Engine) -> None:
    """The step in which another request is forgotten has no part for it."""
    stays, goes = (engine.add(p, max_tokens=60, detokenize=False) for p in random_prompts([50, 60]))
    for _ in range(4):
        engine.step()
    engine.core.pause_scheduler("keep", clear_cache=False)
    engine.llm.abort_request([goes])
    for _ in range(2):
        engine.llm.step()
    assert [request["id"] for request in ask(engine, "fastgen_requests")] == [stays]
    engine.core.resume_scheduler()
    engine.run()


def test_a_preempted_plan_is_forgotten(tiny_llama: Path) -> None:
    """A request that waits again shows nothing of the plan that it lost."""
    fastgen = FastGenConfig(
        when="always", policy="coverage", keep=0.5, coverage=CoverageOptions(generated=1)
    )
    options = dict(max_model_len=512, num_gpu_blocks_override=20, skip_tokenizer_init=True)
    engine = Engine(engine_config(tiny_llama, fastgen, **options))
    try:
        for prompt in random_prompts([250] * 4):
            engine.add(prompt, max_tokens=200, detokenize=False)

        def check() -> None:
            for shown in ask(engine, "fastgen_requests"):
                if shown["compacted"]:
                    assert shown["kept_share"] == pytest.approx(0.5, abs=0.02)

        engine.run(check)
        assert engine.preemptions > 0
        assert ask(engine, "fastgen_heads")["prompts"] > 4, "they are planned again"
    finally:
        engine.close()
