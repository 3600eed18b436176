"""The page stream: every page belongs to one head, and sizes are exact."""

import pytest
import torch
from torch import Tensor

from fastgen_vllm.geometry import CacheGeometry, HeadField, StoreRule
from fastgen_vllm.pages import StreamPlan, StreamSize
from fastgen_vllm.policy import Choice, Full, Important, Local

S = 32
#: Policies of a plan, by kind of head.
CAPPED, APPENDING, FULL = range(3)
POLICIES = (Local(0.5), Important(total=0, recent=1, sinks=0, keep_generated=True), Full())


def geometry(layers: int, heads: int) -> CacheGeometry:
    return CacheGeometry(layers, heads, 1, 64, S, 10)


def plan_of(kept: Tensor, kind: Tensor, num_tokens: int) -> StreamPlan:
    """A plan whose heads [L, H] keep their last tokens."""
    keep = torch.arange(num_tokens) >= num_tokens - kept[..., None]
    return StreamPlan.make(Choice(POLICIES, kind, keep), 1, geometry(*kept.shape))


def plan_of_one_layer(kept: list[int], kind: int, num_tokens: int) -> StreamPlan:
    return plan_of(torch.tensor([kept]), torch.full((1, len(kept)), kind), num_tokens)


def random_heads(num_tokens: int) -> tuple[Tensor, Tensor]:
    """Kept tokens and kind of 3 x 4 heads: all three kinds are there."""
    generator = torch.Generator().manual_seed(num_tokens)
    kept = torch.randint(1, num_tokens + 1, (3, 4), generator=generator)
    kind = torch.randint(CAPPED, FULL + 1, (3, 4), generator=generator)
    kind[0, :3] = torch.tensor([CAPPED, APPENDING, FULL])
    return kept.masked_fill(kind == FULL, num_tokens), kind


def num_slots(record: list[int], kept: int, num_generated: int) -> int:
    """Slots that a head uses, or may use if it is capped."""
    if record[HeadField.RULE] == StoreRule.APPEND:
        return kept + num_generated
    return record[HeadField.NUM_PAGES] * S


def page_of_slot(record: list[int], slot: int) -> int:
    """Stream page of a head's slot, by the formula."""
    page = slot // S
    if page < record[HeadField.NUM_PAGES]:
        return record[HeadField.FIRST_PAGE] + page
    beyond = page - record[HeadField.NUM_PAGES]
    return record[HeadField.GROWTH_PAGE] + beyond * record[HeadField.GROWTH_STRIDE]


PROMPTS = pytest.mark.parametrize("num_tokens", [1, 5, S - 1, S, S + 1, 3 * S, 200])


@PROMPTS
def test_every_slot_has_a_page_of_its_own_head(num_tokens: int) -> None:
    kept, kind = random_heads(num_tokens)
    plan = plan_of(kept, kind, num_tokens)
    records = plan.records.view(-1, len(HeadField)).tolist()
    for length in range(num_tokens, num_tokens + 5 * S + 1):
        owner: dict[int, int] = {}
        for head, (record, count) in enumerate(zip(records, kept.flatten().tolist(), strict=True)):
            for slot in range(num_slots(record, count, length - num_tokens)):
                page = page_of_slot(record, slot)
                assert owner.setdefault(page, head) == head
        assert max(owner) < plan.size.pages(length)


@PROMPTS
def test_pages_are_dense(num_tokens: int) -> None:
    """The fixed part, and then each step of growth, has a page of every head that grows."""
    kept, kind = random_heads(num_tokens)
    plan = plan_of(kept, kind, num_tokens)
    records = plan.records.view(-1, len(HeadField)).tolist()
    pages: list[int] = []
    for record in records:
        first = record[HeadField.FIRST_PAGE]
        pages += range(first, first + record[HeadField.NUM_PAGES])
    growing = [record for record in records if record[HeadField.RULE] == StoreRule.APPEND]
    assert len(growing) == plan.size.num_growing > 1
    for step in range(6):
        assert sorted(pages) == list(range(plan.size.fixed_pages + step * len(growing)))
        pages += [
            page_of_slot(record, (record[HeadField.NUM_PAGES] + step) * S) for record in growing
        ]


@PROMPTS
def test_size_is_exact(num_tokens: int) -> None:
    """All heads that append grow as soon as one of them needs it, and no sooner."""
    kept, kind = random_heads(num_tokens)
    plan = plan_of(kept, kind, num_tokens)
    appended = kept[kind != CAPPED].tolist()
    fixed = sum(-(-count // S) for count in appended)
    capped = kept[kind == CAPPED].tolist()
    fixed += sum(min(-(-(count + 1) // S), -(-num_tokens // S)) for count in capped)
    for length in range(num_tokens, num_tokens + 5 * S + 1):
        generated = length - num_tokens
        steps = max(-(-(count + generated) // S) - -(-count // S) for count in appended)
        assert plan.size.pages(length) == fixed + len(appended) * steps
        assert plan.size.blocks(length) == -(-(fixed + len(appended) * steps) // 12)


def test_capped_head_has_room_for_one_more() -> None:
    plan = plan_of_one_layer([S - 1, S, 2 * S - 1, 1], CAPPED, 5 * S)
    assert plan.records[0, :, HeadField.NUM_PAGES].tolist() == [1, 2, 2, 1]
    assert plan.capacity()[0].tolist() == [S, 2 * S, 2 * S, S]


def test_capped_head_never_exceeds_the_prompt() -> None:
    plan = plan_of_one_layer([2 * S - 1, 2 * S], CAPPED, 2 * S)
    assert plan.records[0, :, HeadField.NUM_PAGES].tolist() == [2, 2]


def test_head_that_appends_has_pages_for_its_kept_tokens() -> None:
    plan = plan_of_one_layer([S - 1, S, S + 1, 1], APPENDING, 5 * S)
    assert plan.records[0, :, HeadField.NUM_PAGES].tolist() == [1, 1, 2, 1]


def test_heads_that_append_grow_when_the_first_is_full() -> None:
    # Free slots after 100 prompt tokens: 12 and 31.
    plan = plan_of_one_layer([20, 33], APPENDING, 100)
    assert plan.size.room == 112
    assert [plan.size.pages(n) for n in (100, 112, 113, 144, 145)] == [3, 3, 5, 5, 7]


def test_capped_heads_never_grow() -> None:
    plan = plan_of_one_layer([20, 33], CAPPED, 100)
    assert [plan.size.pages(n) for n in (100, 1000)] == [3, 3]
    assert not plan.growing().any()


def test_growing_heads_are_those_that_append() -> None:
    kind = torch.tensor([[CAPPED, APPENDING], [FULL, CAPPED]])
    plan = plan_of(torch.tensor([[3, 3], [9, 9]]), kind, 9)
    assert plan.growing().tolist() == [[False, True], [True, False]]


def test_all_full_needs_what_stock_needs() -> None:
    for num_tokens in (1, S - 1, S, S + 1, 7 * S + 5):
        plan = plan_of(torch.full((2, 3), num_tokens), torch.full((2, 3), FULL), num_tokens)
        for length in range(num_tokens, num_tokens + 3 * S):
            assert plan.size.blocks(length) == -(-length // S)


@pytest.mark.parametrize("num_tokens", [95, 96, 97, 200, 333])
def test_a_plan_that_saves_a_block_never_needs_more_than_stock(num_tokens: int) -> None:
    """Even if all its heads grow before stock needs a block: so rows of the block table suffice."""
    generator = torch.Generator().manual_seed(num_tokens)
    kept = torch.randint(1, num_tokens - S, (3, 4), generator=generator)
    plan = plan_of(kept, torch.full_like(kept, APPENDING), num_tokens)
    assert plan.size.blocks(num_tokens) < -(-num_tokens // S)
    for length in range(num_tokens, num_tokens + 5 * S):
        assert plan.size.blocks(length) <= -(-length // S)


def test_size_by_hand() -> None:
    size = StreamSize(fixed_pages=10, num_growing=3, room=70, pages_per_block=6, block_size=S)
    lengths = (1, 70, 71, 102, 103)
    assert [size.pages(n) for n in lengths] == [10, 10, 13, 13, 16]
    assert [size.blocks(n) for n in lengths] == [2, 2, 3, 3, 3]
