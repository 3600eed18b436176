"""The page stream: every page belongs to one head, and sizes are exact."""

import pytest
import torch

from fastgen_vllm.geometry import CacheGeometry, HeadField, StoreRule
from fastgen_vllm.pages import StreamPlan, StreamSize
from fastgen_vllm.policy import Choice, Full, Local

S = 32


def geometry(layers: int, heads: int) -> CacheGeometry:
    return CacheGeometry(layers, heads, 1, 64, S, 10)


def plan_of(kept: list[list[int]], num_tokens: int) -> StreamPlan:
    """A plan whose heads keep their last tokens; all of them is a full head."""
    counts = torch.tensor(kept)
    keep = torch.arange(num_tokens) >= num_tokens - counts[..., None]
    index = (counts == num_tokens).long()
    choice = Choice((Local(0.5), Full()), index, keep)
    return StreamPlan.make(choice, 1, geometry(*counts.shape))


def pages_of(plan: StreamPlan, num_tokens: int) -> list[int]:
    """Stream pages of all heads when the request has ``num_tokens`` tokens, by the formula."""
    pages: list[int] = []
    for record in plan.records.view(-1, len(HeadField)).tolist():
        count = record[HeadField.NUM_PAGES]
        pages += range(record[HeadField.FIRST_PAGE], record[HeadField.FIRST_PAGE] + count)
        if record[HeadField.RULE] == StoreRule.APPEND:
            grown = max(0, -(-num_tokens // S) - count)
            stride = record[HeadField.GROWTH_STRIDE]
            pages += [record[HeadField.GROWTH_PAGE] + step * stride for step in range(grown)]
    return pages


@pytest.mark.parametrize("num_tokens", [1, 5, S - 1, S, S + 1, 3 * S, 200])
def test_pages_are_disjoint_and_dense(num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    kept = torch.randint(1, num_tokens + 1, (3, 4), generator=generator)
    kept[0, 1] = kept[2, 3] = num_tokens
    plan = plan_of(kept.tolist(), num_tokens)
    for length in (num_tokens, num_tokens + 1, num_tokens + S, num_tokens + 5 * S + 3):
        pages = pages_of(plan, length)
        assert sorted(pages) == list(range(plan.size.pages(length)))


def test_capped_head_has_room_for_one_more() -> None:
    plan = plan_of([[S - 1, S, 2 * S - 1, 1]], 5 * S)
    assert plan.records[0, :, HeadField.NUM_PAGES].tolist() == [1, 2, 2, 1]
    assert plan.capacity()[0].tolist() == [S, 2 * S, 2 * S, S]


def test_capped_head_never_exceeds_the_prompt() -> None:
    plan = plan_of([[2 * S - 1, 1]], 2 * S)
    assert plan.records[0, 0, HeadField.NUM_PAGES] == 2


def test_all_full_needs_what_stock_needs() -> None:
    for num_tokens in (1, S - 1, S, S + 1, 7 * S + 5):
        plan = plan_of([[num_tokens] * 3] * 2, num_tokens)
        for length in range(num_tokens, num_tokens + 3 * S):
            assert plan.size.blocks(length) == -(-length // S)


def test_size_by_hand() -> None:
    size = StreamSize(fixed_pages=10, num_full=3, prompt_pages=2, pages_per_block=6, block_size=S)
    assert [size.pages(n) for n in (1, 2 * S, 2 * S + 1, 3 * S + 1)] == [10, 10, 13, 16]
    assert [size.blocks(n) for n in (1, 2 * S, 2 * S + 1, 3 * S + 1)] == [2, 2, 3, 3]
