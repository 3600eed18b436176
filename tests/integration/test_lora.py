"""LoRA adapters: K and V of one prompt differ by adapter, so nothing of it is shared."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vllm.lora.request import LoRARequest

from fastgen_vllm.config import FastGenConfig, load_config
from tests.integration.engine import BLOCK_SIZE, Engine, engine_config
from tests.integration.test_blocks import watch_orders
from tests.integration.tiny import random_prompts, tiny_shape

OPTIONS: dict[str, Any] = dict(
    skip_tokenizer_init=True,
    max_model_len=1024,
    kv_cache_memory_bytes=2**23,
    enable_lora=True,
    max_loras=3,  # with two, vLLM 0.32 on the CPU gives requests without one the first
    max_lora_rank=8,
)
PARAMS: dict[str, Any] = dict(max_tokens=40, detokenize=False)
SHARED = 320


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[LoRARequest]:
    """Two, each of other random weights for all values."""
    shape = tiny_shape()
    hidden, width = shape["hidden_size"], shape["num_key_value_heads"] * shape["head_dim"]
    adapters = []
    for number in (1, 2):
        directory = tmp_path_factory.mktemp(f"adapter{number}")
        dice = torch.Generator().manual_seed(number)
        weights = {}
        for layer in range(shape["num_hidden_layers"]):
            name = f"base_model.model.model.layers.{layer}.self_attn.v_proj.lora_"
            weights[f"{name}A.weight"] = torch.randn(8, hidden, generator=dice) * 0.3
            weights[f"{name}B.weight"] = torch.randn(width, 8, generator=dice) * 0.3
        save_file(weights, directory / "adapter_model.safetensors")
        config = dict(peft_type="LORA", r=8, lora_alpha=8, target_modules=["v_proj"], bias="none")
        (directory / "adapter_config.json").write_text(json.dumps(config))
        adapters.append(LoRARequest(f"adapter{number}", number, str(directory)))
    return adapters


def run(
    model: Path, fastgen: FastGenConfig | None, adapters: list[LoRARequest]
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Run prompts with a common beginning, without and with each adapter, twice each.

    Returns:
        Their tokens, and of every compaction the number of old blocks and of those that stay.
    """
    engine = Engine(engine_config(model, fastgen, **OPTIONS))
    try:
        orders = [] if fastgen is None else watch_orders(engine)
        (shared,) = random_prompts([SHARED], seed=7)
        ids = [
            engine.add(shared + own, lora_request=adapter, **PARAMS)
            for adapter in (None, *adapters)
            for own in random_prompts([90, 140], seed=8)
        ]
        results = engine.run()
        compactions = [(len(order.old_row), order.num_stay) for order in orders]
        return [results[request_id].tokens for request_id in ids], compactions
    finally:
        engine.close()


def test_full_equals_stock(tiny_llama: Path, adapters: list[LoRARequest]) -> None:
    expected, _ = run(tiny_llama, None, adapters)
    answers, compactions = run(tiny_llama, load_config("full"), adapters)
    assert answers == expected
    assert len(compactions) == 6
    assert expected[0] != expected[2] != expected[4], "the adapters change nothing"


def test_each_adapter_shares_with_its_own(tiny_llama: Path, adapters: list[LoRARequest]) -> None:
    """What stays is the beginning of two requests of one adapter, not of all six."""
    fastgen = FastGenConfig(keep=0.3, min_answer=1, force=True)
    answers, compactions = run(tiny_llama, fastgen, adapters)
    assert [num_stay for _, num_stay in compactions] == [SHARED // BLOCK_SIZE] * 6
    assert len({tuple(answer) for answer in answers}) == 6
