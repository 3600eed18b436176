"""Invariants 3 and 6: whatever ends a request, at any phase, the pool stays whole.

``Engine.step`` checks every block of the pool and every lane of the worker after each step.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from fastgen_vllm.config import CoverageOptions, FastGenConfig
from tests.integration.engine import Engine, engine_config
from tests.integration.tiny import random_prompts

BLOCK_BYTES = 3 * 2 * 32 * 64 * 4  # layers, heads, slots, K and V, float32
CONFIG = FastGenConfig(when="always", policy="coverage", recovery=0.6, observe=64)
OPTIONS: dict[str, Any] = dict(
    skip_tokenizer_init=True,
    max_model_len=768,
    max_num_seqs=16,
    max_num_batched_tokens=128,
    num_gpu_blocks_override=40,
)
PARAMS: dict[str, Any] = dict(detokenize=False)
EXTRAS = [
    None,
    {"fastgen": "off"},
    {"fastgen_policy": "paper"},
    {"fastgen_generated": "keep"},
    {"fastgen_generated": 0.5},
    {"fastgen_generated": 1e-300},
    {"fastgen_keep": 0.3, "fastgen_generated": "keep"},
    {"fastgen_keep_tokens": 60, "fastgen_policy": "ahakv"},
]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def engine(request: pytest.FixtureRequest, tiny_llama: Path) -> Iterator[Engine]:
    engine = Engine(engine_config(tiny_llama, CONFIG, async_scheduling=request.param, **OPTIONS))
    yield engine
    engine.close()


def abort(engine: Engine, request_id: str) -> None:
    engine.llm.abort_request([request_id])
    engine.check()


def test_storm(engine: Engine) -> None:
    """Arrivals, aborts and preemptions at random, in a pool for two or three prompts."""
    dice = random.Random(7)
    lengths = [1, 31, 33, 64, 65, 150, 200, 333, 500]
    prompts = random_prompts(lengths * 8, seed=5)
    alive: list[str] = []
    for prompt in prompts:
        extra = dice.choice(EXTRAS)
        alive.append(
            engine.add(prompt, max_tokens=dice.randint(1, 150), extra_args=extra, **PARAMS)
        )
        for _ in range(dice.randint(0, 4)):
            engine.step()
        if dice.random() < 0.4:
            abort(engine, alive.pop(dice.randrange(len(alive))))
        if dice.random() < 0.05:
            engine.scheduler.reset_prefix_cache(reset_running_requests=True)
            engine.check()
    finished = engine.run()
    assert set(alive) <= set(finished)
    assert engine.stats.compactions > 5
    assert engine.preemptions > 0


def queued(engine: Engine, request_id: str) -> bool:
    return True


def mid_prefill(engine: Engine, request_id: str) -> bool:
    internal = engine.internal_id(request_id)
    if internal is None or internal not in engine.scheduler.requests:
        return False
    return 0 < engine.scheduler.requests[internal].num_computed_tokens < 500


def profiled(engine: Engine, request_id: str) -> bool:
    return engine.internal_id(request_id) in engine.scheduler._pending


def decoding(engine: Engine, request_id: str) -> bool:
    return engine.kept_positions(request_id) is not None


@pytest.mark.parametrize("phase", [queued, mid_prefill, profiled, decoding])
def test_abort_at(engine: Engine, phase: Callable[[Engine, str], bool]) -> None:
    (prompt,) = random_prompts([500], seed=6)
    request_id = engine.add(prompt, max_tokens=60, **PARAMS)
    for _ in range(40):
        if phase(engine, request_id):
            break
        engine.step()
    else:
        pytest.fail(f"the request never was {phase.__name__}")
    abort(engine, request_id)
    other = engine.add(prompt[:90], max_tokens=5, **PARAMS)
    assert len(engine.run()[other].tokens) == 5
    assert request_id not in engine.finished


def test_bad_input_harms_nobody(engine: Engine) -> None:
    good = engine.add(random_prompts([200], seed=8)[0], max_tokens=20, **PARAMS)
    for _ in range(3):
        engine.step()
    for extra in ({"fastgen": "maybe"}, {"fastgen_recovery": 2}, {"fastgen_polcy": "paper"}):
        with pytest.raises(VLLMValidationError) as caught:
            engine.add([5, 6, 7], extra_args=extra, **PARAMS)
        assert caught.value.parameter in extra
    with pytest.raises(VLLMValidationError, match="context length"):
        engine.add([5] * 2000, **PARAMS)
    assert len(engine.run()[good].tokens) == 20


def test_compaction_in_a_full_pool(tiny_llama: Path) -> None:
    """With not one block free the old blocks themselves become the page stream."""
    prompt = random_prompts([600], seed=9)[0]
    tokens = []
    for blocks in (60, 21):  # 600 tokens and 30 more need 20 blocks; one is the null block
        options = OPTIONS | dict(num_gpu_blocks_override=blocks, max_model_len=640)
        engine = Engine(engine_config(tiny_llama, CONFIG, **options))
        try:
            request_id = engine.add(prompt, max_tokens=30, **PARAMS)
            tokens.append(engine.run()[request_id].tokens)
            assert engine.stats.compactions == 1
        finally:
            engine.close()
    assert tokens[0] == tokens[1]


def make_sharing(model: Path, is_async: bool) -> tuple[Engine, list[int]]:
    """An engine of 30 blocks, and a prompt of 20, 19 of which others with it can share."""
    config = engine_config(
        model,
        FastGenConfig(policy="full", force=True, observe=32),
        async_scheduling=is_async,
        **(OPTIONS | dict(num_gpu_blocks_override=31)),
    )
    return Engine(config), random_prompts([640], seed=9)[0]


def add_and_prefill(engine: Engine, prompt: list[int], **params: Any) -> str:
    """Add a request and go on to the step that computes the last of its prompt."""
    request_id = engine.add(prompt, **params, **PARAMS)
    running = engine.scheduler.running
    while not running or running[0].num_computed_tokens < len(prompt):
        engine.step()
        running = engine.scheduler.running
    return request_id


OFF = {"fastgen": "off"}


def test_readers_that_come_after_the_plan_leave_no_room(tiny_llama: Path) -> None:
    """Their blocks neither stay, as the plan does not know, nor come back: it stays as it is."""
    engine, prompt = make_sharing(tiny_llama, is_async=True)
    try:
        on = add_and_prefill(engine, prompt, max_tokens=20)
        # A stream of 20 blocks finds less than 10 free.
        off = engine.add(prompt, max_tokens=40, extra_args=OFF, **PARAMS)
        results = engine.run()
        assert results[on].tokens == results[off].tokens[:20]
        assert engine.stats.uncompacted == {"off": 1, "no_room": 1}
    finally:
        engine.close()


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_shared_blocks_take_no_room(tiny_llama: Path, is_async: bool) -> None:
    """Readers that are there when the prompt ends: their blocks stay in the stream."""
    engine, prompt = make_sharing(tiny_llama, is_async)
    try:
        off = add_and_prefill(engine, prompt, max_tokens=40, extra_args=OFF)
        on = engine.add(prompt, max_tokens=20, **PARAMS)
        results = engine.run()
        assert results[on].tokens == results[off].tokens[:20]
        assert engine.stats.uncompacted == {"off": 1}
        assert engine.stats.compactions == 1
    finally:
        engine.close()


def test_a_stream_that_outgrows_the_longest_row_is_declined(tiny_llama: Path) -> None:
    """Forced, partly kept heads that append may need a block more than `max_model_len` has."""
    fastgen = FastGenConfig(
        policy="coverage",
        keep=0.8,
        observe=64,
        force=True,
        min_answer=1,
        coverage=CoverageOptions(recent=0.2, generated="keep"),
    )
    (prompt,) = random_prompts([122], seed=12)
    compactions = []
    for longest in (128, 512):
        engine = Engine(
            engine_config(tiny_llama, fastgen, **(OPTIONS | {"max_model_len": longest}))
        )
        try:
            engine.add(prompt, max_tokens=6, **PARAMS)
            engine.run()
            compactions.append(engine.stats.compactions)
        finally:
            engine.close()
    assert compactions == [0, 1]


def test_what_is_kept_beside_the_cache_is_part_of_the_pool(tiny_llama: Path) -> None:
    """Positions, values and head records come out of the memory that the cache was given."""
    pool = 100 * BLOCK_BYTES
    options = {key: value for key, value in OPTIONS.items() if key != "num_gpu_blocks_override"}
    engine = Engine(engine_config(tiny_llama, CONFIG, kv_cache_memory_bytes=pool, **options))
    try:
        used = engine.runtime.geometry.num_blocks * BLOCK_BYTES + engine.runtime.metadata_bytes
        assert pool - 2 * BLOCK_BYTES < used <= pool
    finally:
        engine.close()


def test_short_prompts_stay_uncompressed(tiny_llama: Path) -> None:
    engine = Engine(
        engine_config(tiny_llama, CONFIG.model_copy(update={"min_prompt": 200}), **OPTIONS)
    )
    try:
        short, long = (engine.add(p, max_tokens=30, **PARAMS) for p in random_prompts([199, 200]))
        off = engine.add(random_prompts([199])[0], extra_args={"fastgen": "off"}, **PARAMS)
        results = engine.run()
        assert engine.stats.uncompacted == {"short": 1, "off": 1}
        assert engine.stats.compactions == 1
        assert results[short].tokens[:24] == results[off].tokens
        assert len(results[long].tokens) == 30
    finally:
        engine.close()
