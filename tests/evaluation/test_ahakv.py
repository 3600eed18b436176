"""AhaKV's formula against loops."""

import math
from pathlib import Path

import pytest
import torch

from fastgen_vllm.evaluation import ahakv
from fastgen_vllm.evaluation.dense import DenseModel, Prefill
from tests.integration.tiny import random_prompts

LENGTH = 75


@pytest.fixture(scope="module")
def prefill(tiny_base: Path) -> Prefill:
    (prompt,) = random_prompts([LENGTH], seed=6)
    return DenseModel(tiny_base).prefill(prompt)


def scores_by_loop(prefill: Prefill, layer: int, budget: int) -> list[list[float]]:
    """[H][N]"""
    call = prefill.layers[layer]
    queries, keys, values = call.queries(LENGTH), call.keys[0], call.values[0]
    heads, groups, _, size = queries.shape
    found = []
    for h in range(heads):
        worth = [0.0] * LENGTH
        for g in range(groups):
            for row in range(LENGTH - 32, LENGTH):
                visible = row + 1
                sharp = math.sqrt(2 * max(0.0, math.log(visible / budget)) / size)
                dots = [float(queries[h, g, row] @ keys[h, j]) for j in range(visible)]
                largest = max(sharp * dot for dot in dots)
                powers = [math.exp(sharp * dot - largest) for dot in dots]
                for j, power in enumerate(powers):
                    worth[j] += power / sum(powers) / groups
        sizes = [float(values[h, j] @ values[h, j]) for j in range(LENGTH)]
        pooled = []
        for j in range(LENGTH):
            near = [sizes[i] for i in range(j - 2, j + 3) if 0 <= i < LENGTH]
            pooled.append(sum(near) / len(near))
        found.append([w * p / max(pooled) for w, p in zip(worth, pooled, strict=True)])
    return found


@pytest.mark.parametrize("budget", [8, 37, 70])
def test_scores_equal_a_loop(budget: int, prefill: Prefill) -> None:
    for number, layer in enumerate(prefill.layers):
        expected = torch.tensor(scores_by_loop(prefill, number, budget))
        torch.testing.assert_close(ahakv.score(layer, budget), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_last_rows_and_the_best_are_kept(share: float, prefill: Prefill) -> None:
    budget = int(LENGTH * share)
    recent = min(32, budget)
    kept = ahakv.keep(prefill, share)
    for number in range(len(prefill.layers)):
        for head, worth in enumerate(scores_by_loop(prefill, number, budget)):
            order = sorted(range(LENGTH - recent), key=lambda j: -worth[j])
            expected = {*order[: budget - recent], *range(LENGTH - recent, LENGTH)}
            assert set(kept[number, head].nonzero().flatten().tolist()) == expected


def test_sharpness_gives_the_entropy_of_the_budget() -> None:
    """For products of random vectors, as the paper derives it."""
    torch.manual_seed(0)
    visible, budget, size = 20_000, 4_000, 256
    products = torch.randn(visible) * math.sqrt(size)
    sharp = ahakv.sharpness(torch.tensor(visible), budget, size)
    weights = (sharp * products).softmax(0)
    entropy = -float((weights * weights.log()).sum())
    assert math.exp(entropy) == pytest.approx(budget, rel=0.1)
