"""KVzip's scores: the attention of a real repetition of the prompt."""

from pathlib import Path

import pytest
import torch

from fastgen_vllm.evaluation import kvzip
from fastgen_vllm.evaluation.dense import DenseModel, Prefill
from tests.integration.tiny import random_prompts

LENGTH, REQUEST = 40, [9, 8, 7]


@pytest.fixture(scope="module")
def dense(tiny_base: Path) -> DenseModel:
    return DenseModel(tiny_base)


@pytest.fixture(scope="module")
def prefill(dense: DenseModel) -> Prefill:
    (prompt,) = random_prompts([LENGTH], seed=8)
    return dense.prefill(prompt)


def largest_look(dense: DenseModel, prefill: Prefill, tokens: list[int]) -> torch.Tensor:
    """[L, H, N] by the model's own eager code, the repetition appended to the prompt."""
    dense.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            output = dense.model(torch.tensor([prefill.tokens + tokens]), output_attentions=True)
    finally:
        dense.model.set_attn_implementation("sdpa")
    layers = torch.stack([layer[0] for layer in output.attentions])  # [L, Hq, T, T]
    looks = layers[:, :, LENGTH:, :LENGTH].amax(2)
    return looks.view(len(layers), 2, 2, LENGTH).amax(2)


def test_scores_are_the_largest_look_of_the_repetition(dense: DenseModel, prefill: Prefill) -> None:
    expected = largest_look(dense, prefill, REQUEST + prefill.tokens)
    found = kvzip.score(dense, prefill, REQUEST)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_long_prompt_is_repeated_in_pieces(
    dense: DenseModel, prefill: Prefill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvzip, "_CHUNK", 25)
    expected = torch.maximum(
        largest_look(dense, prefill, REQUEST + prefill.tokens[:25]),
        largest_look(dense, prefill, REQUEST + prefill.tokens[25:]),
    )
    found = kvzip.score(dense, prefill, REQUEST)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_first_tokens_and_the_best_are_kept() -> None:
    scores = torch.arange(2 * 3 * 50.0).view(2, 3, 50)
    kept = kvzip.keep(scores, 0.4)
    assert int(kept.sum()) == 120 and kept[..., :4].all()
    others = scores[..., 4:][kept[..., 4:]]
    assert sorted(others.tolist()) == sorted(scores[..., 4:].flatten().tolist())[-96:]
