"""Invariant 2: decode after compaction equals dense attention over the kept tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from fastgen_vllm.config import FastGenConfig, PaperOptions
from fastgen_vllm.geometry import CacheGeometry
from fastgen_vllm.lifecycle import observed_queries, plan_compaction
from fastgen_vllm.profile import PromptProfile
from fastgen_vllm.request import RequestOptions
from tests.integration.engine import BLOCK_SIZE, Engine, engine_config
from tests.integration.tiny import random_prompts
from tests.oracle import Decoder

#: Without a tokenizer no token is special: these configurations need none.
CONFIGS = {
    "paper": FastGenConfig(
        policy="paper", recovery=0.6, observe=64, force=True, paper=PaperOptions(local=0.2)
    ),
    "frequent": FastGenConfig(
        policy="paper",
        recovery=0.5,
        observe="all",
        force=True,
        paper=PaperOptions(local=0.1, frequent=0.2),
    ),
    "coverage": FastGenConfig(policy="coverage", recovery=0.7, observe=64, force=True),
    "max": FastGenConfig(policy="coverage", recovery=0.8, observe=32, force=True, pool="max"),
    "min": FastGenConfig(policy="coverage", recovery=0.6, observe=32, force=True, pool="min"),
}


#: Share of kept positions that may differ: tokens whose attention differs by rounding only.
TIES = 0.002


def difference(kept: list[list[list[int]]], other: list[list[list[int]]]) -> float:
    """Share of kept positions that are in one of two models' heads but not in the other."""
    total = differing = 0
    for heads, other_heads in zip(kept, other, strict=True):
        for head, other_head in zip(heads, other_heads, strict=True):
            total += len(head)
            differing += len(set(head) ^ set(other_head))
    return differing / total


def compare(
    model: Path,
    config: FastGenConfig,
    prompt: list[int],
    *,
    max_tokens: int,
    tolerance: float,
    **options: Any,
) -> float:
    """Run the engine, feed its tokens to the oracle, compare; return the kept share."""
    engine = Engine(engine_config(model, config, **options))
    first_kept: list[list[list[int]]] = []
    last_kept: list[list[list[int]]] = []
    try:
        request_id = engine.add(prompt, max_tokens=max_tokens, logprobs=5, detokenize=False)
        table = engine.runtime._token_class

        def watch() -> None:
            nonlocal last_kept
            if (kept := engine.kept_positions(request_id)) is not None:
                last_kept = kept
                if not first_kept:
                    first_kept.extend(kept)

        result = engine.run(watch)[request_id]
    finally:
        engine.close()

    oracle = Decoder(model)
    num_observed = observed_queries(config, len(prompt))
    logprobs = oracle.prefill(prompt, num_observed, config.pool)
    token_class = table[torch.tensor(prompt)]
    profile = PromptProfile(oracle.attention, token_class, num_observed)
    geometry = CacheGeometry(
        oracle.num_layers,
        oracle.num_kv_heads,
        oracle.group,
        oracle.head_size,
        BLOCK_SIZE,
        num_blocks=0,
    )
    plan = plan_compaction(profile, config, RequestOptions(), geometry)
    oracle.compact(plan.choice.keep, plan.stream.records, token_class, BLOCK_SIZE)
    for step, token in enumerate(result.tokens):
        for candidate, logprob in result.logprobs[step].items():
            assert logprob == pytest.approx(float(logprobs[candidate]), abs=tolerance)
        if step + 1 < len(result.tokens):
            logprobs = oracle.decode(token, len(prompt) + step, int(table[token]), config.pool)
        # The last step's row is gone when it is over: the one before is the last seen.
        if step == 0:
            assert difference(first_kept, oracle.kept_positions()) <= TIES
        if step == len(result.tokens) - 3:
            assert difference(last_kept, oracle.kept_positions()) <= TIES
    return plan.kept_share


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_qwen2", "tiny_mha"])
def test_random_model(name: str, model: str, request: pytest.FixtureRequest) -> None:
    (prompt,) = random_prompts([203])
    share = compare(
        request.getfixturevalue(model),
        CONFIGS[name],
        prompt,
        max_tokens=90,
        tolerance=2e-3,
        skip_tokenizer_init=True,
        max_model_len=512,
        kv_cache_memory_bytes=2**22,
    )
    assert share < 1.0, "nothing was freed: the test compares nothing"


@pytest.mark.parametrize("name", ["paper", "coverage"])
def test_real_model(name: str, default_model: Path) -> None:
    text = Path(torch.__file__).parent.joinpath("functional.py").read_text()
    tokenizer = AutoTokenizer.from_pretrained(default_model)
    chat = [{"role": "user", "content": f"What does this do?\n{text[2000:4400]}"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    share = compare(
        default_model,
        CONFIGS[name],
        prompt,
        max_tokens=24,
        tolerance=5e-3,
        max_model_len=2048,
    )
    assert share < 0.9
