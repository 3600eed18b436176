"""Invariant 1: all heads full and compaction forced, greedy tokens equal stock vLLM's."""

from pathlib import Path
from typing import Any

import pytest

from fastgen_vllm.config import FastGenConfig, load_config
from tests.integration.engine import BLOCK_SIZE as S
from tests.integration.engine import Engine, engine_config, generate, tokens
from tests.integration.tiny import random_prompts

FULL = load_config("full")
LENGTHS = [1, 2, S - 1, S, S + 1, 2 * S - 1, 2 * S, 2 * S + 1, 100, 150, 255, 300, 511, 700, 900]
OPTIONS: dict[str, Any] = dict(
    skip_tokenizer_init=True, max_model_len=1024, kv_cache_memory_bytes=2**23
)
PARAMS: dict[str, Any] = dict(max_tokens=40, detokenize=False)

VARIANTS: dict[str, dict[str, Any]] = {
    "sync": {},
    "async": dict(async_scheduling=True),
    "chunked": dict(max_num_batched_tokens=256),
    "chunked-async": dict(max_num_batched_tokens=256, async_scheduling=True),
    "no-prefix-caching": dict(enable_prefix_caching=False),
    "small-pool": dict(num_gpu_blocks_override=36),
    "small-pool-async": dict(num_gpu_blocks_override=36, async_scheduling=True),
    "compiled": dict(enforce_eager=False),
}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """30 prompts: random ones, and pairs that share a prefix of whole and part blocks."""
    prompts = random_prompts(LENGTHS)
    long = prompts[-1]
    tails = random_prompts([1, S - 1, S, 40, 77], seed=2)
    shared = [long[:length] + tail for length in (64, 320, 500) for tail in tails]
    return prompts + shared


@pytest.fixture(scope="module")
def stock(tiny_llama: Path, prompts: list[list[int]]) -> list[list[int]]:
    results, _ = generate(engine_config(tiny_llama, None, **OPTIONS), prompts, **PARAMS)
    return tokens(results)


@pytest.mark.parametrize("variant", VARIANTS)
def test_batch(
    variant: str, tiny_llama: Path, prompts: list[list[int]], stock: list[list[int]]
) -> None:
    check_batch(variant, FULL, tiny_llama, prompts, stock)


@pytest.mark.parametrize("variant", ["async", "chunked", "small-pool", "small-pool-async"])
def test_batch_of_replayed_prompts(
    variant: str, tiny_llama: Path, prompts: list[list[int]], stock: list[list[int]]
) -> None:
    """Whose hits in the prefix cache are not cut, so that more is shared."""
    replaying = FULL.model_copy(update={"observe": "replay"})
    check_batch(variant, replaying, tiny_llama, prompts, stock)


def check_batch(
    variant: str,
    fastgen: FastGenConfig,
    tiny_llama: Path,
    prompts: list[list[int]],
    stock: list[list[int]],
) -> None:
    config = engine_config(tiny_llama, fastgen, **(OPTIONS | VARIANTS[variant]))
    results, engine = generate(config, prompts, **PARAMS)
    assert tokens(results) == stock
    assert engine.stats.compactions > 0
    if variant.startswith("small-pool"):
        assert engine.preemptions > 0, "the pool was not small enough to preempt"
    else:
        assert not engine.stats.uncompacted


@pytest.mark.parametrize("variant", ["sync", "async"])
def test_one_by_one(
    variant: str, tiny_llama: Path, prompts: list[list[int]], stock: list[list[int]]
) -> None:
    config = engine_config(tiny_llama, FULL, **(OPTIONS | VARIANTS[variant]))
    results, engine = generate(config, prompts, one_by_one=True, **PARAMS)
    assert tokens(results) == stock
    assert not engine.stats.uncompacted


@pytest.mark.parametrize("model", ["tiny_qwen2", "tiny_qwen3", "tiny_mistral", "tiny_mha"])
def test_other_models(model: str, prompts: list[list[int]], request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(model)
    some = prompts[::3]
    expected, _ = generate(engine_config(path, None, **OPTIONS), some, **PARAMS)
    results, engine = generate(engine_config(path, FULL, **OPTIONS), some, **PARAMS)
    assert tokens(results) == tokens(expected)
    assert not engine.stats.uncompacted


def test_prefix_cache_survives_compaction(tiny_llama: Path) -> None:
    """The blocks that compaction returns still serve later prompts with that prefix."""
    config = FastGenConfig(policy="full", force=True, observe=S)
    engine = Engine(engine_config(tiny_llama, config, **OPTIONS))
    try:
        (prompt,) = random_prompts([300])
        first = engine.add(prompt, **PARAMS)
        engine.run()
        again = engine.add(prompt, **PARAMS)
        outputs = engine.step()
        while not outputs:
            outputs = engine.step()
        # W = 32 observed queries of 300: a hit may end at block 8, position 256.
        assert outputs[0].num_cached_tokens == 256
        results = engine.run()
        assert results[again].tokens == results[first].tokens
    finally:
        engine.close()


def test_installed_but_off(tiny_llama: Path, prompts: list[list[int]], stock: Any) -> None:
    """A request that asks for no compression takes the stock path only."""
    config = engine_config(tiny_llama, FULL, **OPTIONS)
    results, engine = generate(config, prompts, extra_args={"fastgen": "off"}, **PARAMS)
    assert tokens(results) == stock
    assert engine.stats.compactions == 0
    assert engine.stats.uncompacted == {"off": len(prompts)}
