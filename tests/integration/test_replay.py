"""Replayed prompts: what they keep, however they are computed and wherever from."""

import time
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
ALONE = CONFIG.model_copy(update={"shared_prefix": "compress"})
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
    """Requests are compressed as if they were alone: what they keep depends on nothing else."""
    engine = Engine(engine_config(tiny_llama, ALONE, **OPTIONS))
    yield engine
    engine.close()


@pytest.fixture
def sharing(tiny_llama: Path) -> Iterator[Engine]:
    """As by default: nothing is computed that the prefix cache has."""
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


def expect_no_more(kept: Any, before: Any, num_prompt: int) -> None:
    """Of the prompt every head keeps what it kept before, or less: it has generated since."""
    for layer, layer_before in zip(kept, before, strict=True):
        for head, head_before in zip(layer, layer_before, strict=True):
            assert {position for position in head if position < num_prompt} <= set(head_before)


def test_a_prompt_that_was_preempted(sharing: Engine, prompt: list[int], alone: Any) -> None:
    request_id = sharing.add(prompt, **(PARAMS | dict(max_tokens=30)))
    assert kept(sharing, request_id) == alone
    assert sharing.scheduler.reset_prefix_cache(reset_running_requests=True)
    sharing.step()
    expect_no_more(kept(sharing, request_id), alone, len(prompt))


@pytest.mark.parametrize("num_found", [0, 701])
def test_a_prompt_that_was_preempted_and_found(
    sharing: Engine, prompt: list[int], num_found: int
) -> None:
    """It finds all that it had computed, but uses no more than what changes nothing."""
    if num_found:
        sharing.add(prompt[:num_found], **PARAMS)
        sharing.run()
    request_id = sharing.add(prompt, **(PARAMS | dict(max_tokens=30)))
    before = kept(sharing, request_id)
    (request,) = sharing.scheduler.running
    sharing.scheduler.running.remove(request)
    sharing.scheduler._preempt_request(request, time.monotonic())
    sharing.step()
    again = kept(sharing, request_id)
    assert sharing.scheduler._progress[request.request_id].found == (672 if num_found else 512)
    expect_no_more(again, before, len(prompt))


def test_nothing_is_computed_twice(sharing: Engine, prompt: list[int]) -> None:
    """By whomever it was: hits are those of stock vLLM."""
    others = [prompt[:700] + random_prompts([500], seed=5)[0], prompt]
    first: list[dict[str, Any]] = [PARAMS, PARAMS | dict(extra_args=OFF)]
    for other, params in zip(others, first, strict=True):
        sharing.add(other, **params)
        sharing.run()
    found = []
    for length in (300, 690, 1_100):
        sharing.add(prompt[:length], **PARAMS)
        found.append(cached(sharing))
        sharing.run()
    assert found == [288, 672, 1_088]
