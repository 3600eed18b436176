"""Replayed prompts keep the same positions, however they are computed and wherever from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastgen_vllm.config import CoverageOptions, FastGenConfig
from fastgen_vllm.request import ENABLED
from tests.integration.engine import Engine, engine_config
from tests.integration.test_determinism import kept
from tests.integration.tiny import random_prompts

CONFIG = FastGenConfig(
    observe="replay",
    keep=0.3,
    force=True,
    min_answer=1,
    coverage=CoverageOptions(recent=0.1),
)
OPTIONS: dict[str, Any] = dict(
    skip_tokenizer_init=True, max_model_len=2048, kv_cache_memory_bytes=2**23
)
PARAMS: dict[str, Any] = dict(max_tokens=3, detokenize=False)
OFF = {ENABLED: "off"}


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    return random_prompts([1_100], seed=3)[0]


@pytest.fixture(scope="module")
def alone(tiny_llama: Path, prompt: list[int]) -> list[list[list[int]]]:
    engine = Engine(engine_config(tiny_llama, CONFIG, **OPTIONS))
    try:
        return kept(engine, engine.add(prompt, **PARAMS))
    finally:
        engine.close()


@pytest.fixture
def engine(tiny_llama: Path) -> Iterator[Engine]:
    engine = Engine(engine_config(tiny_llama, CONFIG, **OPTIONS))
    yield engine
    engine.close()


@pytest.mark.parametrize("budget", [64, 256, 300])
def test_in_chunks_and_in_a_batch(
    tiny_llama: Path, prompt: list[int], alone: Any, budget: int
) -> None:
    engine = Engine(engine_config(tiny_llama, CONFIG, max_num_batched_tokens=budget, **OPTIONS))
    try:
        for other in random_prompts([33, 750, 90], seed=4):
            engine.add(other, **(PARAMS | dict(max_tokens=100)))
        assert kept(engine, engine.add(prompt, **PARAMS)) == alone
        assert not engine.runtime._requests or all(
            not request.waiting for request in engine.runtime._requests.values()
        )
    finally:
        engine.close()


def cached(engine: Engine) -> int:
    (output,) = engine.step()
    assert output.num_cached_tokens is not None
    return output.num_cached_tokens


def test_the_same_prompt_again(engine: Engine, prompt: list[int], alone: Any) -> None:
    """Its first block is found, with what its queries read; the last 128 queries are asked anew."""
    engine.add(prompt, **PARAMS)
    engine.run()
    assert kept(engine, engine.add(prompt, **PARAMS)) == alone
    assert cached(engine) == 512


def test_another_prompt_with_its_beginning(engine: Engine, prompt: list[int], alone: Any) -> None:
    """What a block's queries read does not depend on what follows the block."""
    engine.add(prompt[:700] + random_prompts([500], seed=5)[0], **PARAMS)
    engine.run()
    assert kept(engine, engine.add(prompt, **PARAMS)) == alone
    assert cached(engine) == 512


def test_a_beginning_that_nobody_replayed(engine: Engine, prompt: list[int], alone: Any) -> None:
    """It is computed again, once: the copy that was replayed is found before the other."""
    engine.add(prompt, **PARAMS, extra_args=OFF)
    engine.run()
    for found in (0, 512):
        assert kept(engine, engine.add(prompt, **PARAMS)) == alone
        assert cached(engine) == found
        engine.run()


AHAKV = {"fastgen_policy": "ahakv", "fastgen_keep": 0.3}


def test_a_beginning_that_was_not_replayed(engine: Engine, prompt: list[int], alone: Any) -> None:
    """A request of policy ahakv is compressed, but its blocks do not say what a replay would."""
    kept(engine, engine.add(prompt, **PARAMS, extra_args=AHAKV))
    engine.run()
    assert kept(engine, engine.add(prompt, **PARAMS)) == alone
    assert cached(engine) == 0


def test_a_beginning_that_was_used_otherwise(engine: Engine, prompt: list[int], alone: Any) -> None:
    """To one of policy ahakv it is nothing whether blocks were replayed: but for 32 tokens, all."""
    engine.add(prompt, **PARAMS)
    engine.run()
    kept(engine, engine.add(prompt, **PARAMS, extra_args=AHAKV))
    assert cached(engine) == 1056
    engine.run()
    assert kept(engine, engine.add(prompt, **PARAMS)) == alone
    assert cached(engine) == 512


def test_blocks_that_were_something_else_since(
    engine: Engine, prompt: list[int], alone: Any
) -> None:
    """A block's content comes back to the block, computed by a request that is not compressed."""
    engine.add(prompt, **PARAMS)
    engine.run()
    for seed in range(6):  # the pool holds some 5,000 tokens
        engine.add(random_prompts([1_500], seed=seed + 10)[0], **(PARAMS | dict(max_tokens=40)))
        engine.run()
    engine.add(prompt, **PARAMS, extra_args=OFF)
    engine.run()
    assert kept(engine, engine.add(prompt, **PARAMS)) == alone
    assert cached(engine) == 0


def test_a_prompt_that_was_preempted(engine: Engine, prompt: list[int], alone: Any) -> None:
    request_id = engine.add(prompt, **(PARAMS | dict(max_tokens=30)))
    assert kept(engine, request_id) == alone
    assert engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    engine.step()
    again = kept(engine, request_id)
    for layer, before in zip(again, alone, strict=True):
        for head, head_before in zip(layer, before, strict=True):
            assert {position for position in head if position < len(prompt)} <= set(head_before)
