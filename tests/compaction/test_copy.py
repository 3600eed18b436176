"""What a compaction copies, and what it leaves when a head has no room."""

import math

import pytest
import torch

from fastgen_vllm.compaction import PreparedCompaction
from fastgen_vllm.compaction.copy import free_excess
from fastgen_vllm.geometry import CacheGeometry, HeadField, StoreRule, TokenClass
from fastgen_vllm.pages import StreamPlan
from fastgen_vllm.policy import Choice, Frequent, Full, Important, Local, Policy, Special
from tests.profiles import make_profile

S = 32


def copy_one(
    policy: Policy,
    kept: list[int],
    attention: torch.Tensor,
    *,
    energy: torch.Tensor | None = None,
    later: int = 0,
    special: tuple[int, ...] = (),
) -> tuple[list[int], dict[int, float]]:
    """Compact one head; return kept positions and their values."""
    num_prompt = len(attention)
    token_class = torch.zeros(num_prompt + later, dtype=torch.int32)
    token_class[list(special)] = TokenClass.SPECIAL
    profile = make_profile(
        attention[None, None],
        energy=None if energy is None else energy[None, None],
        token_class=token_class[:num_prompt],
        observed=num_prompt,
    )
    keep = torch.zeros(1, 1, num_prompt, dtype=torch.bool)
    keep[..., kept] = True
    choice = Choice((policy,), torch.zeros(1, 1, dtype=torch.int64), keep)
    plan = StreamPlan.make(choice, num_prompt, CacheGeometry(1, 1, 1, 64, S, 4))
    copy = PreparedCompaction.make(choice, plan, profile).copy(token_class)
    positions = copy.kept.tolist()
    assert copy.kept_start.tolist() == [0, len(positions)]
    assert copy.records[0, 0, HeadField.LENGTH] == len(positions)
    return positions, dict(zip(positions, copy.kept_value.tolist(), strict=True))


def test_kept_tokens_with_their_attention() -> None:
    attention = torch.arange(40, dtype=torch.float32)
    positions, values = copy_one(Special() | Frequent(0.1), [3, 30, 39], attention, special=(3, 5))
    assert positions == [3, 30, 39]
    assert values == {3: math.inf, 30: 30.0, 39: 39.0}


def test_full_head_takes_later_tokens() -> None:
    positions, _ = copy_one(Full(), list(range(40)), torch.ones(40), later=50)
    assert positions == list(range(90))


def test_partly_kept_head_that_appends_takes_all_later_tokens() -> None:
    """Its two kept tokens fill no page, and 50 more are beyond that page: nothing goes."""
    policy = Important(total=2, recent=1, sinks=0, generated=1.0)
    positions, _ = copy_one(policy, [7, 39], torch.ones(40), later=50)
    assert positions == [7, *range(39, 90)]


def test_partly_kept_head_that_replaces_stays_within_its_pages() -> None:
    policy = Important(total=2, recent=1, sinks=0, generated=0.0)
    positions, _ = copy_one(policy, [7, 39], torch.ones(40), later=50)
    assert len(positions) == S
    assert positions[-1] == 89


@pytest.mark.parametrize(("later", "kept"), [(29, 31), (S, S), (50, 52), (2 * S, 2 * S)])
def test_growing_head_has_room_for_half_of_the_later_tokens(later: int, kept: int) -> None:
    """Two kept tokens in a page, and a page more with every second step, of 32 tokens each."""
    policy = Important(total=2, recent=1, sinks=0, generated=0.5)
    positions, _ = copy_one(policy, [7, 39], torch.ones(40), later=later)
    assert len(positions) == kept
    assert positions[-1] == 39 + later


def test_later_tokens_enter_with_average_attention() -> None:
    positions, values = copy_one(Frequent(0.1), [1, 2], torch.ones(40), later=4)
    assert positions == [1, 2, 40, 41, 42, 43]
    assert values[40] == pytest.approx(4 / 40)
    assert values[43] == pytest.approx(1 / 40)


def test_excess_goes_by_least_average_attention() -> None:
    attention = torch.ones(64)
    attention[10], attention[11] = 0.001, 0.002
    kept = list(range(5, 36))  # 31 tokens: capacity 32
    positions, _ = copy_one(Frequent(0.1), kept, attention, later=3)
    assert len(positions) == S
    assert set(kept) - set(positions) == {10, 11}


def test_excess_spares_window_and_special_tokens() -> None:
    attention = torch.full((64,), 0.0)
    kept = list(range(31))
    policy = Special() | Frequent(0.1) | Local(0.5)  # window: the last 32 of what is stored
    positions, _ = copy_one(policy, kept, attention, later=20, special=(0, 1, 2))
    assert len(positions) == S
    # 51 tokens for 32 slots: 19 of the unprotected prompt tokens go, oldest first.
    assert positions == [0, 1, 2, *range(22, 31), *range(64, 84)]


def test_excess_by_age_when_nothing_values_tokens() -> None:
    positions, _ = copy_one(Special(), [0, 9, 20], torch.ones(64), later=40, special=(0,))
    assert positions == [0, *range(73, 104)]


def test_heads_that_go_by_energy_start_from_it() -> None:
    """Their later tokens have the average energy of a query, as others have its attention."""
    policy = Important(total=2, recent=1, sinks=0, generated=0.5)
    energy = torch.full((40,), 0.25)
    energy[7] = 3.0
    attention = torch.rand(40, generator=torch.Generator().manual_seed(0))
    positions, values = copy_one(policy, [7, 39], attention, energy=energy, later=2)
    assert positions == [7, 39, 40, 41]
    assert values[7] == 3.0 and values[39] == 0.25
    average = float(energy.sum()) / 40 / 40
    assert values[40] == pytest.approx(2 * average) and values[41] == pytest.approx(average)


@pytest.mark.parametrize("excess", [2, 300])
def test_many_heads_give_way_by_tier_rank_and_age(excess: int) -> None:
    """As one sorts them by hand; values of few kinds, so that age decides too."""
    random = torch.Generator().manual_seed(excess)
    heads, num_tokens = 40, 500
    rules = torch.randint(0, 4, (heads,), generator=random).int()
    windows = torch.randint(0, 200, (heads,), generator=random).int()
    records = torch.zeros(heads, len(HeadField), dtype=torch.int32)
    records[:, HeadField.RULE], records[:, HeadField.WINDOW] = rules, windows
    value = torch.randint(0, 4, (heads, num_tokens), generator=random).float()
    value.masked_fill_(torch.rand(heads, num_tokens, generator=random) < 0.1, math.inf)
    keep = torch.rand(heads, num_tokens, generator=random) < 0.8
    capacity = (keep.sum(-1) - torch.arange(heads) * excess // heads).clamp_min(1)
    expected = keep.clone()
    for head in range(heads):

        def order(token: int, head: int = head) -> tuple[int, float, int]:
            if value[head, token] == math.inf:
                return 2, token, token
            if token >= num_tokens - windows[head]:
                return 1, token, token
            by_value = StoreRule(int(rules[head])).values_tokens
            average = value[head, token].item() / (num_tokens - token)
            return 0, average if by_value else token, token

        tokens = sorted(keep[head].nonzero()[:, 0].tolist(), key=order)
        expected[head, tokens[: len(tokens) - int(capacity[head])]] = False
    free_excess(keep, value, torch.arange(num_tokens), capacity, records)
    assert torch.equal(keep, expected)
