"""Compaction gives blocks back: to the pool, without copies of what need not be copied."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastgen_vllm import ops
from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.runtime.messages import CompactionOrder
from tests.integration.engine import Engine, engine_config
from tests.integration.tiny import random_prompts

PARAMS: dict[str, Any] = dict(detokenize=False)
FASTGEN = FastGenConfig(
    when="always", policy="coverage", keep=0.37, min_prompt=64, observe=32, min_answer=1
)
OPTIONS: dict[str, Any] = dict(skip_tokenizer_init=True, max_model_len=1024)


def make_engine(model: Path, blocks: int, **options: Any) -> Engine:
    chosen = OPTIONS | dict(num_gpu_blocks_override=blocks) | options
    return Engine(engine_config(model, FASTGEN, **chosen))


@pytest.fixture(scope="module")
def roomy(tiny_llama: Path) -> Iterator[Engine]:
    engine = make_engine(tiny_llama, 600)
    yield engine
    engine.close()


def used(engine: Engine) -> int:
    pool = engine.scheduler.kv_cache_manager.block_pool
    return int(pool.num_gpu_blocks - 1 - pool.get_num_free_blocks())


def watch_orders(engine: Engine) -> list[CompactionOrder]:
    """Every compaction that the scheduler orders from now on."""
    orders: list[CompactionOrder] = []
    schedule = engine.scheduler.schedule

    def noting(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        orders.extend(output.kv_connector_metadata.compactions)
        return output

    engine.scheduler.schedule = noting
    return orders


@pytest.mark.parametrize("caching", [True, False], ids=["prefix-caching", "no-caching"])
def test_old_and_new_blocks_differ_where_there_is_room(tiny_llama: Path, caching: bool) -> None:
    engine = make_engine(tiny_llama, 60, enable_prefix_caching=caching)
    try:
        orders = watch_orders(engine)
        for length in (203, 224, 403, 417):
            engine.add(random_prompts([length], seed=length)[0], max_tokens=8, **PARAMS)
            engine.run()
        assert len(orders) == 4
        for order in orders:
            assert set(order.old_row).isdisjoint(order.new_row)
    finally:
        engine.close()


def run_sharers(engine: Engine, n: int = 1, **extra: object) -> tuple[int, int, int]:
    """Run eight requests that share a prefix; return peak, compactions, blocks given back."""
    (shared,) = random_prompts([512], seed=9)
    prompts = [shared + own for own in random_prompts([32] * (8 // n), seed=10)]
    before = (engine.stats.compactions, engine.stats.blocks_given_back)
    for prompt in prompts:
        engine.add(prompt, max_tokens=24, n=n, temperature=1.0, extra_args=extra, **PARAMS)
    seen: list[int] = []
    engine.run(lambda: seen.append(used(engine)))
    engine.scheduler.reset_prefix_cache()
    after = (engine.stats.compactions, engine.stats.blocks_given_back)
    return max(seen), after[0] - before[0], after[1] - before[1]


@pytest.mark.parametrize("n", [1, 8])
def test_requests_that_share_a_prefix_take_no_more_than_in_stock(roomy: Engine, n: int) -> None:
    stock, *_ = run_sharers(roomy, n, fastgen="off")
    peak, _, _ = run_sharers(roomy, n)
    assert peak <= stock


def test_given_back_is_what_came_back(roomy: Engine) -> None:
    """Two requests share half of their prompts; the last one alone returns those blocks."""
    (shared,) = random_prompts([320], seed=12)
    manager = roomy.scheduler._manager
    assert manager is not None
    compact = manager.compact
    came_back: list[int] = []

    def noting(*args: Any) -> Any:
        before = used(roomy)
        rows = compact(*args)
        came_back.append(before - used(roomy))
        return rows

    manager.compact = noting
    before = roomy.stats.blocks_given_back
    try:
        for own in random_prompts([320, 320, 500], seed=13):
            roomy.add(shared + own, max_tokens=8, **PARAMS)
        roomy.run()
    finally:
        manager.compact = compact
    assert len(came_back) == 3 and min(came_back) > 0
    assert roomy.stats.blocks_given_back - before == sum(came_back)


def test_who_saves_only_later_is_compacted_later(roomy: Engine) -> None:
    """Nearly all is kept, and most heads replace what they generate: stock's blocks grow faster."""
    (prompt,) = random_prompts([97], seed=4)
    before = roomy.stats.compactions
    request_id = roomy.add(
        prompt,
        max_tokens=300,
        extra_args={"fastgen_keep": 0.99, "fastgen_generated": "replace"},
        **PARAMS,
    )
    held: list[int] = []
    roomy.run(lambda: held.append(used(roomy)))
    assert len(roomy.finished[request_id].tokens) == 300
    assert roomy.stats.compactions == before + 1
    stock = -(-(97 + 300) // 32)
    assert held[0] == 4 and max(held) < stock


def test_readers_are_counted_when_they_change(roomy: Engine) -> None:
    """While a request waits for a reader that came after its plan, not in every step."""
    (prompt,) = random_prompts([97], seed=14)
    manager = roomy.scheduler._manager
    assert manager is not None
    count = manager.num_returned
    counted: list[str] = []

    def noting(request_id: str, num_stay: int) -> int:
        counted.append(request_id)
        return count(request_id, num_stay)

    manager.num_returned = noting
    before = roomy.stats.compactions
    try:
        kept = {"fastgen_keep": 0.99, "fastgen_generated": "replace"}
        roomy.add(prompt, max_tokens=300, extra_args=kept, **PARAMS)
        for _ in range(4):
            roomy.step()
        other = roomy.add(prompt, max_tokens=150, extra_args={"fastgen": "off"}, **PARAMS)
        while other not in roomy.finished:
            roomy.step()
            assert roomy.stats.compactions == before
        roomy.run()
    finally:
        manager.num_returned = count
    assert roomy.stats.compactions == before + 1
    assert 3 <= len(counted) <= 7


def test_plans_that_wait_are_small(roomy: Engine) -> None:
    """Of a prompt's profile only what its kept tokens need waits with them."""
    (shared,) = random_prompts([512], seed=15)
    for own in random_prompts([32] * 6, seed=16):
        roomy.add(shared + own, max_tokens=12, **PARAMS)
    most: list[float] = []

    def weigh() -> None:
        waiting = [r for r in roomy.runtime._requests.values() if r.prepared is not None]
        for request in waiting:
            assert request.attention is None and request.energy is None
            assert request.prepared is not None
            _, _, *tensors = request.prepared
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            most.append(size / request.num_prompt / roomy.runtime.geometry.pages_per_block)

    roomy.run(weigh)
    assert most and max(most) < 8 * 0.4


def test_only_blocks_that_are_in_both_rows_are_saved(
    roomy: Engine, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three blocks too few, three of the old row are taken again, and copied before.

    The last test of this file: closing an engine ends what others in the process build on.
    """
    compact = ops.compact
    calls: list[tuple[int, int, int]] = []

    def noting(*args: Any) -> None:
        _, old_row, _, saved, new_row, *_ = args
        calls.append((len(old_row), saved.shape[1], len(new_row)))
        compact(*args)

    monkeypatch.setattr(ops, "compact", noting)
    (prompt,) = random_prompts([450], seed=21)

    def generate(engine: Engine) -> list[int]:
        request_id = engine.add(prompt, max_tokens=40, **PARAMS)
        return engine.run()[request_id].tokens

    expected = generate(roomy)
    [(old, saved, new)] = calls
    assert saved == 0 and new > 3
    # One block of every pool is vLLM's own.
    tight = make_engine(tiny_llama, 1 + old + new - 3, max_model_len=512)
    try:
        assert generate(tight) == expected
    finally:
        tight.close()
    assert calls[1:] == [(old, 3, new)]
