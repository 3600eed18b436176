"""The page stream: every page belongs to one head, and sizes are exact."""

import pytest
import torch
from torch import Tensor

from fastgen_vllm.geometry import CacheGeometry, HeadField, StoreRule
from fastgen_vllm.pages import StreamPlan, StreamSize
from fastgen_vllm.pages.plan import growth_period
from fastgen_vllm.policy import Choice, Frequent, Full, Important, Local, Policy

S = 32
#: Policies of a plan, by kind of head; SLOW heads gain a page in every second step of growth.
CAPPED, SLOW, APPENDING, FULL = range(4)
PERIOD = 2


def partly(generated: float) -> Important:
    return Important(total=0, recent=1, sinks=0, generated=generated)


POLICIES = (Local(0.5), partly(0.5), partly(1.0), Full())


def geometry(layers: int, heads: int) -> CacheGeometry:
    return CacheGeometry(layers, heads, 1, 64, S, 10)


def plan_of(
    kept: Tensor,
    kind: Tensor,
    num_tokens: int,
    policies: tuple[Policy, ...] = POLICIES,
    stock_blocks: int = 0,
) -> StreamPlan:
    """A plan whose heads [L, H] keep their last tokens, and what lies on stock blocks before."""
    num_stock = stock_blocks * S
    token = torch.arange(num_stock + num_tokens) - num_stock
    keep = (token < 0) | (token >= num_tokens - kept[..., None])
    choice = Choice(policies, kind, keep)
    return StreamPlan.make(choice, 1, geometry(*kept.shape), stock_blocks)


def plan_of_one_layer(kept: list[int], kind: int, num_tokens: int) -> StreamPlan:
    return plan_of(torch.tensor([kept]), torch.full((1, len(kept)), kind), num_tokens)


#: Which kinds of heads a request has beside capped ones.
MIXES = [(), (SLOW,), (APPENDING, FULL), (SLOW, APPENDING, FULL)]


def random_heads(num_tokens: int, mix: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Kept tokens and kind of 3 x 4 heads: all kinds of the mix are there."""
    generator = torch.Generator().manual_seed(num_tokens)
    kinds = torch.tensor((CAPPED, *mix))
    kept = torch.randint(1, num_tokens + 1, (3, 4), generator=generator)
    kind = kinds[torch.randint(0, len(kinds), (3, 4), generator=generator)]
    kind[0, : len(kinds)] = kinds
    return kept.masked_fill(kind == FULL, num_tokens), kind


def grown_pages(kind: int, steps: int) -> int:
    """Pages that a head has gained after so many steps, by definition."""
    return {CAPPED: 0, SLOW: steps // PERIOD}.get(kind, steps)


def page_of(record: list[int], page: int) -> int:
    """Stream page of a head's page, by the formula."""
    if page < record[HeadField.STOCK_PAGES]:
        return page * 12 + record[HeadField.STOCK_PAGE]
    page -= record[HeadField.STOCK_PAGES]
    if page < record[HeadField.NUM_PAGES]:
        return record[HeadField.FIRST_PAGE] + page
    beyond = page - record[HeadField.NUM_PAGES]
    skipped = beyond // record[HeadField.SKIP_PERIOD] * record[HeadField.SKIP_PAGES]
    return record[HeadField.GROWTH_PAGE] + beyond * record[HeadField.GROWTH_STRIDE] + skipped


PROMPTS = pytest.mark.parametrize("num_tokens", [1, 5, S - 1, S, S + 1, 3 * S, 200])
MIXED = pytest.mark.parametrize("mix", MIXES)


@MIXED
@PROMPTS
@pytest.mark.parametrize("stock_blocks", [0, 3])
def test_pages_are_dense_and_of_one_head(
    num_tokens: int, mix: tuple[int, ...], stock_blocks: int
) -> None:
    """At any length the pages that heads may use are those that the scheduler counts."""
    kept, kind = random_heads(num_tokens, mix)
    plan = plan_of(kept, kind, num_tokens, stock_blocks=stock_blocks)
    records = plan.records.view(-1, len(HeadField)).tolist()
    num_tokens += stock_blocks * S
    for length in range(num_tokens, num_tokens + 9 * S):
        pages: list[int] = []
        for record, capacity in zip(records, plan.capacity(length).flatten(), strict=True):
            pages += [page_of(record, page) for page in range(int(capacity) // S)]
        assert sorted(pages) == list(range(plan.size.pages(length)))


@MIXED
@PROMPTS
def test_stock_blocks_come_on_top(num_tokens: int, mix: tuple[int, ...]) -> None:
    kept, kind = random_heads(num_tokens, mix)
    alone = plan_of(kept, kind, num_tokens)
    plan = plan_of(kept, kind, num_tokens, stock_blocks=3)
    for length in range(num_tokens, num_tokens + 9 * S):
        assert plan.size.blocks(length + 3 * S) == alone.size.blocks(length) + 3
        assert torch.equal(plan.capacity(length + 3 * S), alone.capacity(length) + 3 * S)


@MIXED
@PROMPTS
def test_size_is_exact(num_tokens: int, mix: tuple[int, ...]) -> None:
    """Heads grow as soon as one that appends needs it, and no sooner."""
    kept, kind = random_heads(num_tokens, mix)
    plan = plan_of(kept, kind, num_tokens)
    heads = list(zip(kept.flatten().tolist(), kind.flatten().tolist(), strict=True))
    appended = [count for count, kind in heads if kind in (APPENDING, FULL)]
    fixed = sum(-(-count // S) for count in appended)
    others = [count for count, kind in heads if kind in (CAPPED, SLOW)]
    fixed += sum(min(-(-(count + 1) // S), -(-num_tokens // S)) for count in others)
    for length in range(num_tokens, num_tokens + 5 * S + 1):
        generated = length - num_tokens
        steps = -(-generated // S)
        if appended:
            steps = max(-(-(count + generated) // S) - -(-count // S) for count in appended)
        pages = fixed + sum(grown_pages(kind, steps) for _, kind in heads)
        assert plan.size.pages(length) == pages
        assert plan.size.blocks(length) == -(-pages // 12)


@MIXED
@PROMPTS
def test_heads_that_append_never_lack_a_slot(num_tokens: int, mix: tuple[int, ...]) -> None:
    kept, kind = random_heads(num_tokens, mix)
    plan = plan_of(kept, kind, num_tokens)
    appending = plan.records[..., HeadField.RULE] == StoreRule.APPEND
    assert torch.equal(appending, (kind == APPENDING) | (kind == FULL))
    for generated in range(5 * S):
        capacity = plan.capacity(num_tokens + generated)
        assert bool((capacity >= kept + generated)[appending].all())


def test_capped_head_has_room_for_one_more() -> None:
    plan = plan_of_one_layer([S - 1, S, 2 * S - 1, 1], CAPPED, 5 * S)
    assert plan.records[0, :, HeadField.NUM_PAGES].tolist() == [1, 2, 2, 1]
    assert plan.capacity(5 * S)[0].tolist() == [S, 2 * S, 2 * S, S]


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


def test_slow_heads_grow_in_every_second_step() -> None:
    plan = plan_of_one_layer([20, 33], SLOW, 100)
    assert plan.size.room == 100
    assert [plan.size.pages(n) for n in (100, 132, 133, 196, 197)] == [3, 3, 5, 5, 7]


def test_slow_heads_grow_with_the_steps_of_those_that_append() -> None:
    kept, kind = torch.tensor([[20, 33]]), torch.tensor([[APPENDING, SLOW]])
    plan = plan_of(kept, kind, 100)
    assert plan.size.room == 112
    assert [plan.size.pages(n) for n in (112, 113, 145, 177, 209)] == [3, 4, 6, 7, 9]


def test_capped_heads_never_grow() -> None:
    plan = plan_of_one_layer([20, 33], CAPPED, 100)
    assert [plan.size.pages(n) for n in (100, 1000)] == [3, 3]


@pytest.mark.parametrize(
    ("growth", "period"), [(0, 0), (0.25, 4), (0.3, 3), (1 / 3, 3), (0.5, 2), (0.51, 1), (1, 1)]
)
def test_heads_gain_no_less_than_their_growth(growth: float, period: int) -> None:
    assert growth_period(partly(growth)) == period


@pytest.mark.parametrize("growth", [1e-10, 5e-324])
def test_hardly_any_growth_is_none(growth: float) -> None:
    policies = (partly(growth), Full())
    plan = plan_of(torch.tensor([[9, 40, 40]]), torch.tensor([[0, 1, 1]]), 40, policies)
    assert plan.size.pages(1 << 20) - plan.size.pages(40) == 2 * ((1 << 20) - 64) // S


def test_a_head_that_appends_must_grow() -> None:
    class Standing(Full):
        @property
        def growth(self) -> float:
            return 0.0

    with pytest.raises(AssertionError, match="no growth"):
        plan_of(torch.tensor([[40]]), torch.tensor([[0]]), 40, (Standing(),))


def test_all_slow_heads_of_a_request_grow_as_the_fastest() -> None:
    policies = (Frequent(0.25), Frequent(0.5))
    plan = plan_of(torch.tensor([[9, 9]]), torch.tensor([[0, 1]]), 40, policies)
    assert plan.size.slow_period == 2 and plan.size.num_slow == 2
    assert plan.records[0, :, HeadField.GROWTH_PERIOD].tolist() == [2, 2]


def test_all_full_needs_what_stock_needs() -> None:
    for num_tokens in (1, S - 1, S, S + 1, 7 * S + 5):
        plan = plan_of(torch.full((2, 3), num_tokens), torch.full((2, 3), FULL), num_tokens)
        for length in range(num_tokens, num_tokens + 3 * S):
            assert plan.size.blocks(length) == -(-length // S)


@pytest.mark.parametrize("kind", [SLOW, APPENDING])
@pytest.mark.parametrize("num_tokens", [95, 96, 97, 200, 333])
def test_a_plan_that_saves_a_block_never_needs_more_than_stock(num_tokens: int, kind: int) -> None:
    """Even if all its heads grow before stock needs a block: so rows of the block table suffice."""
    generator = torch.Generator().manual_seed(num_tokens)
    kept = torch.randint(1, num_tokens - S, (3, 4), generator=generator)
    plan = plan_of(kept, torch.full_like(kept, kind), num_tokens)
    assert plan.size.blocks(num_tokens) < -(-num_tokens // S)
    for length in range(num_tokens, num_tokens + 5 * S):
        assert plan.size.blocks(length) <= -(-length // S)


def test_size_by_hand() -> None:
    size = StreamSize(
        fixed_pages=10,
        num_appending=3,
        num_slow=2,
        slow_period=2,
        room=70,
        pages_per_block=6,
        block_size=S,
    )
    lengths = (1, 70, 71, 102, 103, 134, 135)
    assert [size.pages(n) for n in lengths] == [10, 10, 13, 13, 18, 18, 21]
    assert [size.blocks(n) for n in lengths] == [2, 2, 3, 3, 3, 3, 4]
