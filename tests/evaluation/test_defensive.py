"""DefensiveKV's formula, step by step, against loops."""

import math

import pytest
import torch
from torch import Tensor

from fastgen_vllm.evaluation import defensive
from fastgen_vllm.evaluation.defensive import WINDOW, Look
from fastgen_vllm.evaluation.dense import DenseModel, Prefill
from tests.integration.tiny import random_prompts, save_tiny_qwen2

LENGTH = 90
BEFORE = LENGTH - WINDOW


@pytest.fixture(scope="module")
def prefill(tmp_path_factory: pytest.TempPathFactory) -> Prefill:
    model = DenseModel(save_tiny_qwen2(tmp_path_factory.mktemp("models") / "qwen2"))
    (prompt,) = random_prompts([LENGTH], seed=5)
    return model.prefill(prompt)


def attention_of(prefill: Prefill, layer: int) -> Tensor:
    """[Hq, N, N] by the model's own eager code."""
    module = prefill.layers[layer].module
    hidden = prefill.layers[layer].arguments["hidden_states"]
    module.config._attn_implementation = "eager"
    try:
        mask = torch.full((LENGTH, LENGTH), -math.inf).triu(1)[None, None]
        _, weights = module(hidden, prefill.layers[layer].arguments["position_embeddings"], mask)
    finally:
        module.config._attn_implementation = "sdpa"
    found: Tensor = weights[0].detach()
    return found


def worst_by_loop(rows: Tensor) -> Tensor:
    """[n] for one KV head's [G, W, n] attention."""
    groups, window, length = rows.shape
    worst = [0.0] * length
    for g in range(groups):
        for w in range(window):
            row = rows[g, w].tolist()
            pooled = [
                sum(row[j] for j in range(i - 2, i + 3) if 0 <= j < length) / 5
                for i in range(length)
            ]
            scale = sum(row) / sum(pooled)
            worst = [max(old, scale * new) for old, new in zip(worst, pooled, strict=True)]
    floor = sum(worst) / length
    return torch.tensor([max(value, floor) for value in worst])


def test_worst_case_equals_a_loop() -> None:
    torch.manual_seed(1)
    attention = torch.rand(2, 3, 5, 23).softmax(-1) * 0.8
    found = defensive.worst_case(attention)
    for head in range(2):
        torch.testing.assert_close(found[head], worst_by_loop(attention[head]))


def test_the_look_equals_loops(prefill: Prefill) -> None:
    """Attention of the model's own code, the worst case, and what a value adds to the output."""
    look = defensive.look(prefill)
    for number, layer in enumerate(prefill.layers):
        attention = attention_of(prefill, number)[:, -WINDOW:, :BEFORE]
        weight = layer.module.o_proj.weight
        norms = torch.zeros(2, BEFORE)
        for head in range(4):
            part = weight[:, 32 * head : 32 * (head + 1)]
            for j in range(BEFORE):
                norms[head // 2, j] += (part @ layer.values[0, head // 2, j]).abs().sum().item() / 2
        for head in range(2):
            mine = attention[2 * head : 2 * head + 2]
            expected = worst_by_loop(mine) * norms[head] / (norms[0] + norms[1])
            torch.testing.assert_close(look.risk[number, head], expected, rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(look.mean[number, head], mine.mean((0, 1)))


@pytest.mark.parametrize("most", [0, 3, 1000])
def test_protection_equals_a_loop(most: int) -> None:
    torch.manual_seed(2)
    mean = torch.rand(3, 60).pow(6)
    mean[:, -WINDOW:] /= 50
    mean /= 1.1 * mean.sum(-1, keepdim=True)
    held = sum(float(row[-WINDOW:].sum()) for row in mean) / 3
    found = defensive.protected(mean, most)
    for row, sure in zip(mean, found, strict=True):
        total, expected = 0.0, set()
        for place in row.argsort(descending=True).tolist():
            total += float(row[place] / row.sum())
            if total >= 0.9 - held or len(expected) == most:
                break
            expected.add(place)
        assert set(sure.nonzero().flatten().tolist()) == expected
        assert len(expected) <= most


def kept_by_loop(seen: Look, share: float, across_layers: bool) -> set[tuple[int, int, int]]:
    layers, heads, before = seen.risk.shape
    length = before + WINDOW
    scores = {}
    for layer in range(layers):
        sure = defensive.protected(seen.mean[layer], int(length * share) - WINDOW)
        highest = float(seen.risk[layer].max())
        for head in range(heads):
            for j in range(length):
                safe = j >= before or bool(sure[head, j])
                scores[layer, head, j] = highest if safe else float(seen.risk[layer, head, j])
    if across_layers:
        order = sorted(scores, key=lambda place: -scores[place])
        return set(order[: int(length * share * layers * heads)])
    kept = set()
    for layer in range(layers):
        own = sorted((p for p in scores if p[0] == layer), key=lambda place: -scores[place])
        kept |= set(own[: int(length * share) * heads])
    return kept


@pytest.mark.parametrize("across_layers", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.7])
def test_kept_tokens_equal_a_loop(share: float, across_layers: bool, prefill: Prefill) -> None:
    seen = defensive.look(prefill)
    kept = defensive.keep(seen, share, across_layers=across_layers)
    expected = kept_by_loop(seen, share, across_layers)
    assert {tuple(place) for place in kept.nonzero().tolist()} == expected


def test_less_than_the_window_can_be_kept(prefill: Prefill) -> None:
    kept = defensive.keep(defensive.look(prefill), 0.2, across_layers=True)
    assert int(kept.sum()) == int(0.2 * kept.numel())
