"""What several requests read stays where it is when they are compacted."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.engine import BLOCK_SIZE, Engine, engine_config
from tests.integration.test_blocks import (
    FASTGEN,
    OPTIONS,
    PARAMS,
    make_engine,
    used,
    watch_orders,
)
from tests.integration.tiny import random_prompts

SHARED, OWN, ANSWER = 512, 200, 120
NUM_SHARED = SHARED // BLOCK_SIZE


@pytest.fixture
def engine(tiny_llama: Path) -> Iterator[Engine]:
    engine = make_engine(tiny_llama, 600)
    yield engine
    engine.close()


def add_sharers(engine: Engine, seed: int, count: int = 4, answer: int = ANSWER) -> list[str]:
    (shared,) = random_prompts([SHARED], seed=seed)
    return [
        engine.add(shared + own, max_tokens=answer, **PARAMS)
        for own in random_prompts([OWN] * count, seed=seed + 1)
    ]


def test_shared_blocks_are_not_copied(engine: Engine) -> None:
    orders = watch_orders(engine)
    add_sharers(engine, 20)
    engine.run()
    assert [order.num_stay for order in orders] == [NUM_SHARED] * 4
    first = orders[0].old_row[:NUM_SHARED]
    for order in orders:
        assert order.old_row[:NUM_SHARED] == order.new_row[:NUM_SHARED] == first
        assert len(order.new_row) < len(order.old_row)


def test_every_compaction_gives_back_what_is_freed_of_the_rest(engine: Engine) -> None:
    """At the end all hold one copy of the beginning and 0.37 of the rest, or a little more."""
    add_sharers(engine, 30)
    seen: list[int] = []
    engine.run(lambda: seen.append(used(engine)))
    own = (OWN + ANSWER) / BLOCK_SIZE
    assert max(seen) <= NUM_SHARED + 4 * (own + 1)
    assert seen[-5] <= NUM_SHARED + 4 * (0.37 * OWN / BLOCK_SIZE + ANSWER / BLOCK_SIZE + 2)


def test_heads_hold_all_of_the_beginning(engine: Engine) -> None:
    ids = add_sharers(engine, 40)
    manager = engine.scheduler._manager
    assert manager is not None
    while not all(manager.is_compacted(request_id) for request_id in engine.scheduler.requests):
        engine.step()
    for request_id in engine.scheduler.requests:
        row = [block.block_id for block in manager.req_to_blocks[request_id]]
        kept = engine.runtime.kept_positions(request_id, row)
        for layer in kept:
            for head in layer:
                assert head[:SHARED] == list(range(SHARED))
        fewest = min(len(head) for layer in kept for head in layer)
        assert fewest < SHARED + OWN
    engine.run()
    assert all(len(engine.finished[request_id].tokens) == ANSWER for request_id in ids)


def test_the_report_tells_shared_from_own_blocks(engine: Engine) -> None:
    (shared,) = random_prompts([SHARED], seed=60)
    asked = {"fastgen_report": "on"}
    for own in random_prompts([OWN] * 2, seed=61):
        engine.add(shared + own, max_tokens=ANSWER, extra_args=asked, **PARAMS)
    reports, shown = [], []
    while engine.llm.has_unfinished_requests():
        reports += [o.kv_transfer_params["fastgen"] for o in engine.step() if o.finished]
        worker = engine.core.model_executor.driver_worker.worker
        shown += [r["blocks_shared"] for r in worker.fastgen_requests() if r["compacted"]]
    assert [report["blocks_shared"] for report in reports] == [NUM_SHARED] * 2
    assert set(shown) == {NUM_SHARED}


def test_each_compresses_a_copy_if_that_is_wanted(tiny_llama: Path) -> None:
    config = FASTGEN.model_copy(update={"shared_prefix": "compress", "force": True})
    options = OPTIONS | dict(num_gpu_blocks_override=600)
    engine = Engine(engine_config(tiny_llama, config, **options))
    try:
        orders = watch_orders(engine)
        add_sharers(engine, 70)
        engine.run()
    finally:
        engine.close()
    assert [order.num_stay for order in orders] == [0] * 4
    assert all(len(order.new_row) < 0.6 * len(order.old_row) for order in orders)


def test_they_stay_when_the_others_have_gone(engine: Engine) -> None:
    """Requests that end early, a reset of the cache and a later sharer: nothing is lost."""
    (shared,) = random_prompts([SHARED], seed=50)
    long, *short = random_prompts([OWN] * 4, seed=51)
    orders = watch_orders(engine)
    alone = engine.add(shared + long, max_tokens=200, **PARAMS)
    for own in short:
        engine.add(shared + own, max_tokens=20, **PARAMS)
    while len(engine.scheduler.requests) > 1:
        engine.step()
    engine.scheduler.reset_prefix_cache()
    (late,) = random_prompts([OWN], seed=52)
    engine.add(shared + late, max_tokens=40, **PARAMS)
    engine.run()
    assert orders[0].num_stay == NUM_SHARED
    assert len(engine.finished[alone].tokens) == 200
    assert used(engine) == 0
