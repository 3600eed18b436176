"""The same prompt keeps the same positions, whatever happens around it."""

from pathlib import Path
from typing import Any

import pytest

from fastgen_vllm.config import FastGenConfig
from tests.integration.engine import Engine, engine_config
from tests.integration.tiny import random_prompts

CONFIG = FastGenConfig(policy="coverage", recovery=0.7, observe=64, force=True, min_answer=1)
OPTIONS: dict[str, Any] = dict(
    skip_tokenizer_init=True, max_model_len=1024, kv_cache_memory_bytes=2**23
)
PARAMS: dict[str, Any] = dict(max_tokens=3, detokenize=False)


def kept(engine: Engine, request_id: str) -> list[list[list[int]]]:
    """Step until the request is compacted; return what it keeps of its prompt."""
    while (held := engine.kept_positions(request_id)) is None:
        assert engine.llm.has_unfinished_requests(), f"{request_id} was never compacted"
        engine.step()
    return held


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    return random_prompts([403], seed=3)[0]


@pytest.fixture(scope="module")
def alone(tiny_llama: Path, prompt: list[int]) -> list[list[list[int]]]:
    engine = Engine(engine_config(tiny_llama, CONFIG, **OPTIONS))
    try:
        return kept(engine, engine.add(prompt, **PARAMS))
    finally:
        engine.close()


@pytest.mark.parametrize("budget", [2048, 64, 160])
def test_in_a_batch(tiny_llama: Path, prompt: list[int], alone: Any, budget: int) -> None:
    engine = Engine(engine_config(tiny_llama, CONFIG, max_num_batched_tokens=budget, **OPTIONS))
    try:
        for other in random_prompts([33, 250, 90], seed=4):
            engine.add(other, **(PARAMS | dict(max_tokens=200)))
        assert kept(engine, engine.add(prompt, **PARAMS)) == alone
    finally:
        engine.close()


def test_after_a_prefix_cache_hit(tiny_llama: Path, prompt: list[int], alone: Any) -> None:
    engine = Engine(engine_config(tiny_llama, CONFIG, **OPTIONS))
    try:
        engine.add(prompt, **PARAMS)
        engine.run()
        second = engine.add(prompt, **PARAMS)
        assert kept(engine, second) == alone
        (output,) = engine.step()
        assert output.num_cached_tokens == 320  # (403 - 64) // 32 * 32
    finally:
        engine.close()


def test_after_preemption(tiny_llama: Path, prompt: list[int], alone: Any) -> None:
    engine = Engine(engine_config(tiny_llama, CONFIG, **OPTIONS))
    try:
        request_id = engine.add(prompt, **(PARAMS | dict(max_tokens=30)))
        assert kept(engine, request_id) == alone
        for _ in range(5):
            engine.step()
        # All running requests are preempted and start over.
        assert engine.scheduler.reset_prefix_cache(reset_running_requests=True)
        engine.step()
        assert engine.kept_positions(request_id) is None
        again = kept(engine, request_id)
        prompt_part = [[[p for p in head if p < len(prompt)] for head in row] for row in again]
        first_part = [[[p for p in head if p < len(prompt)] for head in row] for row in alone]
        for layer, before in zip(prompt_part, first_part, strict=True):
            for head, head_before in zip(layer, before, strict=True):
                # Generated tokens may have taken places; nothing new came in.
                assert set(head) <= set(head_before)
                assert len(head_before) - len(head) <= 8
    finally:
        engine.close()
