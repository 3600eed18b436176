"""The greatest logits of a rounded head, decided in float32."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastgen_vllm.integration.plugin import register
from fastgen_vllm.models.finalists import decide
from tests.integration.engine import engine_config, generate
from tests.integration.tiny import random_prompts, save_tiny_llama

ARCHITECTURES = ["FinalistsLlamaForCausalLM", "LlamaForCausalLM"]
OPTIONS: dict[str, Any] = dict(
    dtype="bfloat16", skip_tokenizer_init=True, max_model_len=64, kv_cache_memory_bytes=2**22
)
PARAMS: dict[str, Any] = dict(detokenize=False, logprobs=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [1, 7, 256, 1000, 4096])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_decides_as_float32_does(vocab: int, scale: float, dtype: torch.dtype) -> None:
    hidden = (torch.randn(9, 48) * scale).to(dtype)
    weight = torch.randn(vocab, 48).to(dtype)
    weight[vocab // 2 :] = weight[: vocab - vocab // 2].clone()  # every maximum twice,
    weight[vocab // 2 :, 0] += 0.01  # or nearly so
    exact = hidden.float() @ weight.float().T
    rounded = exact.to(dtype)
    decided = decide(rounded, hidden, weight)
    assert decided.dtype == torch.float32
    best = exact.gather(1, decided.argmax(-1, keepdim=True)).squeeze(1)
    # float32's own rounding, of sums of 48 products of up to some 10 * scale that may cancel
    own = dict(rtol=1e-6, atol=3e-5 * max(1.0, scale))
    torch.testing.assert_close(best, exact.amax(-1), **own)
    torch.testing.assert_close(decided.amax(-1), exact.amax(-1), **own)
    torch.testing.assert_close(decided, exact, **own | {"rtol": torch.finfo(dtype).eps})


def test_all_below_zero() -> None:
    hidden, weight = torch.ones(1, 1).bfloat16(), torch.tensor([[-3.0], [-2.0]]).bfloat16()
    assert decide((hidden @ weight.T), hidden, weight).tolist() == [[-3.0, -2.0]]


def test_none_at_all() -> None:
    empty = torch.empty(0, 8).bfloat16()
    assert decide(torch.empty(0, 512).bfloat16(), empty, torch.zeros(512, 8)).shape == (0, 512)


@pytest.fixture(scope="module")
def undecided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokens come in pairs that bfloat16 hardly tells apart."""
    register()
    directory = save_tiny_llama(tmp_path_factory.mktemp("models") / "undecided")
    weights = load_file(directory / "model.safetensors")
    head = weights["lm_head.weight"].bfloat16().float()
    half = len(head) // 2
    head[half:] = head[:half]
    head[half:, 0] *= 1 + 2**-7
    save_file(weights | {"lm_head.weight": head}, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = ARCHITECTURES
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def best_two(model: Path, **options: Any) -> list[list[float]]:
    """Log-probabilities of the best two tokens after each of some prompts."""
    config = engine_config(model, None, **(OPTIONS | options))
    results, _ = generate(config, random_prompts([5] * 16), max_tokens=1, **PARAMS)
    for finished in results:
        assert finished.logprobs[0][finished.tokens[0]] == max(finished.logprobs[0].values())
    return [sorted(finished.logprobs[0].values())[-2:] for finished in results]


def test_the_engine_decides(undecided: Path) -> None:
    llama = dict(hf_overrides={"architectures": ARCHITECTURES[1:]})
    ties = sum(a == b for a, b in best_two(undecided, **llama))
    assert ties > 8, "bfloat16 was to be undecided"
    assert not [pair for pair in best_two(undecided) if pair[0] == pair[1]]
