"""The control on the embedded model: with `full`, greedy tokens equal stock vLLM's."""

from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from transformers import AutoTokenizer

from fastgen_vllm.config import load_config
from tests.integration.engine import BLOCK_SIZE as S
from tests.integration.engine import engine_config, generate, tokens

pytestmark = pytest.mark.slow

LENGTHS = [1, S - 1, S, S + 1, 63, 64, 65, 100, 127, 128, 129, 150, 200, 255, 256, 257, 300]
LENGTHS += [350, 400, 450, 500, 511, 512, 513, 600, 700, 800, 1000, 1500, 2000, 3500]
OPTIONS: dict[str, Any] = dict(num_gpu_blocks_override=800, max_model_len=4096)
PARAMS: dict[str, Any] = dict(max_tokens=16)

VARIANTS: dict[str, dict[str, Any]] = {
    "sync": {},
    "async": dict(async_scheduling=True),
    "chunked": dict(max_num_batched_tokens=256),
    "small-pool": dict(num_gpu_blocks_override=135),
}


@pytest.fixture(scope="module")
def prompts(default_model: Path) -> list[list[int]]:
    """31 prompts; every third long one starts with the same 256 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(default_model)
    tokens = tokenizer("\n\n".join(topics.values()), verbose=False).input_ids
    prompts = [tokens[n * 900 : n * 900 + length] for n, length in enumerate(LENGTHS)]
    return [
        tokens[:256] + prompt[256:] if len(prompt) > 300 and n % 3 == 0 else prompt
        for n, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def stock(default_model: Path, prompts: list[list[int]]) -> list[list[int]]:
    results, _ = generate(engine_config(default_model, None, **OPTIONS), prompts, **PARAMS)
    return tokens(results)


@pytest.mark.parametrize("variant", VARIANTS)
def test_batch(
    variant: str, default_model: Path, prompts: list[list[int]], stock: list[list[int]]
) -> None:
    config = engine_config(default_model, load_config("full"), **(OPTIONS | VARIANTS[variant]))
    results, engine = generate(config, prompts, **PARAMS)
    assert tokens(results) == stock
    if variant == "small-pool":
        assert engine.preemptions > 0, "the pool was not small enough to preempt"
        assert engine.stats.compactions > 0
    else:
        assert not engine.stats.uncompacted


def test_one_by_one(default_model: Path, prompts: list[list[int]], stock: list[list[int]]) -> None:
    config = engine_config(default_model, load_config("full"), **OPTIONS)
    results, engine = generate(config, prompts, one_by_one=True, **PARAMS)
    assert tokens(results) == stock
    assert not engine.stats.uncompacted
