"""AhaKV on numbers that can be checked by hand; beside the evaluation's formula: integration."""

import pytest
import torch

from fastgen_vllm.geometry import StoreRule
from fastgen_vllm.policy import AhaKV
from tests.profiles import make_profile, random_profile


def test_attention_and_values_of_neighbours_by_hand() -> None:
    attention, norm = torch.zeros(1, 1, 100), torch.ones(1, 1, 100)
    norm[..., 20] = 3.0  # tokens 18 to 22 have (9 + 4) / 5 = 2.6, the head's greatest
    attention[..., [5, 20, 40, 60]] = torch.tensor([2.0, 1.0, 2.7, 0.5])
    policy = AhaKV(0.34)
    keep = policy.keep(make_profile(attention, value_norm=norm))
    assert keep[0, 0].nonzero()[:, 0].tolist() == [20, 40, *range(68, 100)]


@pytest.mark.parametrize(
    ("share", "num_tokens", "kept", "recent"),
    [(0.5, 200, 100, 32), (0.1, 100, 10, 10), (0.001, 100, 1, 1), (1.0, 20, 20, 20)],
)
def test_heads_keep_as_many_and_the_last(
    share: float, num_tokens: int, kept: int, recent: int
) -> None:
    policy = AhaKV(share)
    choice = policy.choose(random_profile(2, 3, num_tokens), 0.5)
    assert choice.keep.sum(-1).tolist() == [[kept] * 3] * 2
    assert choice.keep[..., -recent:].all()
    assert policy.window(num_tokens) == recent
    assert choice.counts() == ({"ahakv": 0, "full": 6} if share == 1 else {"ahakv": 6, "full": 0})


def test_the_least_attended_token_makes_room() -> None:
    assert (AhaKV(0.5).rule, AhaKV(0.5).growth) == (StoreRule.BY_VALUE, 0)
