"""``when: short``: stock vLLM with room, compaction in place of waiting and preemption without."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.request import WHEN
from tests.integration.engine import BLOCK_SIZE, Engine, engine_config, generate
from tests.integration.test_blocks import watch_orders
from tests.integration.tiny import random_prompts

FASTGEN = FastGenConfig(keep=0.3, min_answer=1)
OPTIONS: dict[str, Any] = dict(skip_tokenizer_init=True, max_model_len=1024)
PARAMS: dict[str, Any] = dict(detokenize=False)


def make_engine(model: Path, num_blocks: int, **options: Any) -> Engine:
    """An engine that can hand out so many blocks."""
    chosen = OPTIONS | dict(num_gpu_blocks_override=num_blocks + 1) | options
    return Engine(engine_config(model, FASTGEN, **chosen))


@pytest.fixture
def roomy(tiny_llama: Path) -> Iterator[Engine]:
    engine = make_engine(tiny_llama, 200)
    yield engine
    engine.close()


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_nobody_is_compacted_with_room(tiny_llama: Path, is_async: bool) -> None:
    engine = make_engine(tiny_llama, 200, async_scheduling=is_async)
    try:
        for prompt in random_prompts([400, 300, 350], seed=80):
            engine.add(prompt, max_tokens=40, **PARAMS)
        engine.run()
        assert engine.stats.uncompacted == {"room": 3}
        assert engine.stats.compactions == 0
    finally:
        engine.close()


def test_answers_enter_the_prefix_cache(roomy: Engine) -> None:
    """A chat computes what is new: the last, partial block and what is asked now."""
    (prompt, *asked) = random_prompts([300, 40, 40, 40], seed=81)
    said = prompt
    for more in asked:
        first = roomy.add(said, max_tokens=60, **PARAMS)
        said = said + roomy.run()[first].tokens + more
        roomy.add(said, max_tokens=1, **PARAMS)
        (output,) = roomy.step()
        # The answer's last token was never computed.
        assert output.num_cached_tokens == (len(said) - len(more) - 1) // BLOCK_SIZE * BLOCK_SIZE
        roomy.run()


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_who_runs_is_compacted_in_place_of_a_preemption(tiny_llama: Path, is_async: bool) -> None:
    """Four of 10 blocks each fit; growing to 13 they do not."""
    prompts = random_prompts([310] * 4, seed=82)
    options = OPTIONS | dict(num_gpu_blocks_override=45)
    _, stock = generate(
        engine_config(tiny_llama, None, **options), prompts, max_tokens=90, **PARAMS
    )
    config = engine_config(tiny_llama, FASTGEN, async_scheduling=is_async, **options)
    _, ours = generate(config, prompts, max_tokens=90, **PARAMS)
    assert stock.preemptions > 0 and ours.preemptions == 0
    assert 0 < ours.stats.compactions < 4


def test_who_runs_is_compacted_for_one_who_waits(tiny_llama: Path) -> None:
    """In the step in which it begins: first who gives back most, and no more than needed."""
    engine = make_engine(tiny_llama, 36)
    try:
        orders = watch_orders(engine)
        short, long = random_prompts([200, 600], seed=83)
        ids = [engine.add(prompt, max_tokens=60, **PARAMS) for prompt in (short, long)]
        for _ in range(5):
            engine.step()
        assert not orders and len(engine.scheduler.running) == 2
        (late,) = random_prompts([330], seed=84)
        engine.add(late, max_tokens=3, **PARAMS)
        engine.step()
        assert len(engine.scheduler.running) == 3
        assert [order.request_id for order in orders] == [engine.internal_id(ids[1])]
        engine.run()
        assert len(orders) == 1
    finally:
        engine.close()


def test_who_finds_what_others_hold_needs_little(tiny_llama: Path) -> None:
    """Three requests of 24 blocks each have 20 in common: 32 blocks are room enough."""
    engine = make_engine(tiny_llama, 32, max_model_len=800)
    try:
        (shared,) = random_prompts([640], seed=85)
        for own in random_prompts([100] * 3, seed=86):
            engine.add(shared + own, max_tokens=10, **PARAMS)
            engine.step()
        engine.run()
        assert engine.stats.compactions == 0
    finally:
        engine.close()


def test_a_request_can_ask_for_it(roomy: Engine) -> None:
    orders = watch_orders(roomy)
    for when in ("always", "short"):
        (prompt,) = random_prompts([400], seed=87)
        roomy.add(prompt, max_tokens=20, extra_args={WHEN: when}, **PARAMS)
        roomy.run()
    assert len(orders) == 1
    assert roomy.stats.uncompacted == {"room": 1}
