"""Heads that are known to matter, on the engine."""

from pathlib import Path
from typing import Any

import pytest

from fastgen_vllm.config import parse_config
from tests.integration.engine import Engine, engine_config
from tests.integration.test_determinism import kept
from tests.integration.tiny import random_prompts

HEAVY = (1, 1)


def kept_with(model: Path, weights: list[list[float]] | None) -> list[list[list[int]]]:
    config = parse_config({"keep": 0.3, "force": True, "min_answer": 1, "head_weights": weights})
    engine = Engine(engine_config(model, config, skip_tokenizer_init=True))
    try:
        (prompt,) = random_prompts([300])
        return kept(engine, engine.add(prompt, max_tokens=3, detokenize=False))
    finally:
        engine.close()


@pytest.fixture(scope="module")
def alike(tiny_llama: Path) -> list[list[list[int]]]:
    return kept_with(tiny_llama, None)


def test_equal_weights_change_nothing(tiny_llama: Path, alike: Any) -> None:
    assert kept_with(tiny_llama, [[3.0, 3.0]] * 3) == alike


def test_a_heavy_head_keeps_what_others_do_not(tiny_llama: Path, alike: Any) -> None:
    weights = [[1.0, 1.0] for _ in range(3)]
    weights[HEAVY[0]][HEAVY[1]] = 50.0
    found = kept_with(tiny_llama, weights)
    counts, before = ([[len(head) for head in layer] for layer in held] for held in (found, alike))
    assert sum(map(sum, counts)) == sum(map(sum, before))
    for layer in range(3):
        for head in range(2):
            if (layer, head) == HEAVY:
                assert counts[layer][head] > before[layer][head]
            else:
                assert counts[layer][head] <= before[layer][head]


def test_weights_of_another_model_are_refused(tiny_llama: Path) -> None:
    message = r"head_weights: 4 rows of 2 numbers, but this model has 3 layers .* of 2 KV heads"
    with pytest.raises(ValueError, match=message):
        kept_with(tiny_llama, [[1.0, 1.0]] * 4)
