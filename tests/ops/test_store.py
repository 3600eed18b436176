from itertools import product

import pytest
import torch
from torch import Tensor

from fastgen_vllm import ops
from fastgen_vllm.geometry import HeadField, StoreRule, TokenClass
from fastgen_vllm.ops import reference
from tests.ops.cases import (
    DTYPES,
    SHAPES,
    Cache,
    HeadPlan,
    generator,
    make_cache,
    make_records,
    random_blocks,
)

INF = float("inf")
S = 32


class Request:
    """One lane of a one-layer cache whose heads are laid out by their plans."""

    def __init__(
        self,
        *plans: HeadPlan,
        dtype: torch.dtype = torch.float32,
        D: int = 32,
        stock: int = 0,
        read_only: int = 0,
    ) -> None:
        H = len(plans)
        records, pages = make_records(list(plans), 1, H, S, stock, read_only)
        blocks = -(-pages // H) + 2
        self.rng = generator(plans, dtype, D)
        self.heads = records[None].clone()
        self.row = random_blocks(blocks, blocks + 2, self.rng)[None]
        self.cache: Cache = make_cache(dtype, 1, blocks + 2, H, S, D, fill=0.0)

    def where(self, head: int) -> tuple[Tensor, Tensor, Tensor]:
        return reference.slots_of(self.cache.arena, self.row[0], self.heads[0, 0, head])

    def set_metadata(self, head: int, positions: Tensor, values: Tensor) -> None:
        self.cache.positions[self.where(head)] = positions.int()
        self.cache.values[self.where(head)] = values

    def store(self, position: int, token_class: TokenClass = TokenClass.PLAIN) -> None:
        """Store a random token through the kernel and the reference; they must agree."""
        H, D = self.cache.arena.shape[2], self.cache.arena.shape[4]
        key, value = torch.randn(2, 3, H, D, generator=self.rng).to(self.cache.arena.dtype)
        expected, expected_heads = self.cache.clone(), self.heads.clone()
        for op, cache, heads in (
            (ops.store, self.cache, self.heads),
            (reference.store, expected, expected_heads),
        ):
            op(
                key,
                value,
                torch.tensor([1]),
                torch.tensor([0], dtype=torch.int32),
                self.row,
                torch.tensor([position], dtype=torch.int32),
                torch.tensor([token_class], dtype=torch.int32),
                0,
                cache.arena,
                heads,
                cache.positions,
                cache.values,
            )
        assert torch.equal(self.heads, expected_heads)
        assert torch.equal(self.cache.arena, expected.arena)
        assert torch.equal(self.cache.positions, expected.positions)
        assert torch.equal(self.cache.values, expected.values)
        for head in range(H):
            slot = self.slot_of_position(head, position)
            keys, values = reference.keys_and_values(
                self.cache.arena, self.row[0], self.heads[0, 0, head]
            )
            assert torch.equal(keys[slot], key[1, head])
            assert torch.equal(values[slot], value[1, head])

    def slot_of_position(self, head: int, position: int) -> int:
        found = (self.cache.positions[self.where(head)] == position).nonzero()
        assert found.numel() == 1
        return int(found)

    def victim(self, positions: Tensor, values: Tensor, position: int) -> int:
        """Slot that a token at `position` takes in head 0."""
        self.set_metadata(0, positions, values)
        self.store(position)
        return self.slot_of_position(0, position)


@pytest.mark.parametrize("dtype", DTYPES)
def test_full_head_grows_past_its_fixed_pages(isa: str, dtype: torch.dtype) -> None:
    plans = [HeadPlan(S - 2), HeadPlan(2 * S - 1, fixed=1), HeadPlan(2 * S, fixed=2)]
    request = Request(*plans, dtype=dtype)
    for step in range(5):
        request.store(1000 + step)
    lengths = request.heads[0, 0, :, HeadField.LENGTH].tolist()
    assert lengths == [S + 3, 2 * S + 4, 2 * S + 5]


def test_head_grows_beyond_its_stock_pages(isa: str) -> None:
    """Onto the pages that the stock row has, the head's fixed ones, and those that it grows by."""
    plans = [HeadPlan(S - 2, fixed=0), HeadPlan(2 * S - 1, fixed=1), HeadPlan(4 * S, fixed=2)]
    request = Request(*plans, stock=2)
    for step in range(S + 5):
        request.store(1000 + step)
    lengths = request.heads[0, 0, :, HeadField.LENGTH].tolist()
    assert lengths == [2 * S + 3, 3 * S + 4, 5 * S + 5]


@pytest.mark.parametrize("rule", [StoreRule.BY_VALUE, StoreRule.BY_ENERGY, StoreRule.BY_AGE])
@pytest.mark.parametrize(("read_only", "oldest"), [(0, 0), (1, S), (2, 2 * S)])
def test_no_token_of_a_page_that_others_read_gives_way(
    isa: str, rule: StoreRule, read_only: int, oldest: int
) -> None:
    request = Request(HeadPlan(3 * S, rule, fixed=1), stock=2, read_only=read_only)
    positions, values = torch.arange(3 * S), torch.zeros(3 * S)
    assert request.victim(positions, values, 3 * S) == oldest


def test_where_all_pages_are_read_only_nothing_is_stored(isa: str) -> None:
    request = Request(HeadPlan(2 * S, StoreRule.BY_AGE, fixed=0), stock=2, read_only=2)
    with pytest.raises(ValueError, match="token_position 64 is out of range, or too early"):
        request.store(2 * S)


@pytest.mark.parametrize("rule", [StoreRule.BY_VALUE, StoreRule.BY_ENERGY, StoreRule.BY_AGE])
def test_capped_head_fills_its_pages_first(isa: str, rule: StoreRule) -> None:
    request = Request(HeadPlan(S + 30, rule))
    request.set_metadata(0, torch.arange(S + 30), torch.full((S + 30,), 5.0))
    for step in range(5):
        request.store(100 + step)
    assert request.heads[0, 0, 0, HeadField.LENGTH] == 2 * S


def test_slowly_growing_head_gains_a_page_with_every_second_step(isa: str) -> None:
    """Beside heads that append and skip its pages; `store` compares pages with the reference."""
    growing = HeadPlan(S, StoreRule.BY_VALUE, growth_period=2, room=100)
    request = Request(HeadPlan(S), growing, HeadPlan(2 * S, fixed=1))
    values = torch.arange(S, dtype=torch.float32)
    request.set_metadata(1, torch.arange(S), values)
    lengths = []
    for position in range(100, 100 + 5 * S):
        request.store(position)
        lengths.append(int(request.heads[0, 0, 1, HeadField.LENGTH]))
    second, fourth = S + 1, 3 * S + 1  # tokens with which the second and fourth step begin
    assert lengths[: second - 1] == [S] * (second - 1)
    assert lengths[second - 1 : second + 2] == [S + 1, S + 2, S + 3]
    assert lengths[fourth - 2 : fourth] == [2 * S, 2 * S + 1]
    assert lengths[-1] == 3 * S
    assert request.heads[0, 0, [0, 2], HeadField.LENGTH].tolist() == [6 * S, 7 * S]


def test_victim_in_a_page_that_the_head_grew_by(isa: str) -> None:
    growing = HeadPlan(2 * S, StoreRule.BY_AGE, fixed=1, growth_period=2, room=100)
    request = Request(growing, HeadPlan(S))
    positions = torch.arange(2 * S).roll(S)  # the oldest token lies in the second page
    request.set_metadata(0, positions, torch.zeros(2 * S))
    request.store(100 + 2 * S - 1)
    assert request.slot_of_position(0, 100 + 2 * S - 1) == S


@pytest.mark.parametrize("rule", [StoreRule.BY_VALUE, StoreRule.BY_ENERGY])
def test_least_value_per_query_goes(isa: str, rule: StoreRule) -> None:
    request = Request(HeadPlan(2 * S, rule, observed_from=80))
    positions = torch.arange(2 * S)
    positions[40] = 95  # seen by 5 queries; the others, all before 80, by 20
    values = torch.full((2 * S,), 2.0)
    values[40] = 0.4
    values[50] = 1.8
    assert request.victim(positions, values, 100) == 40
    values[40] = 0.6
    assert request.victim(positions, values, 100) == 50


def test_of_equal_values_the_older_goes(isa: str) -> None:
    request = Request(HeadPlan(2 * S, StoreRule.BY_VALUE, observed_from=500))
    positions = torch.randperm(2 * S, generator=generator("order"))
    slot = request.victim(positions, torch.ones(2 * S), 600)
    assert slot == int(positions.argmin())


def test_oldest_goes_by_age(isa: str) -> None:
    request = Request(HeadPlan(2 * S, StoreRule.BY_AGE))
    positions = torch.randperm(2 * S, generator=generator("age"))
    values = torch.rand(2 * S, generator=generator("value"))
    values[positions < 10] = INF
    slot = request.victim(positions, values, 600)
    assert int(positions[slot]) == 10


def test_window_spares_recent_tokens(isa: str) -> None:
    request = Request(HeadPlan(S, StoreRule.BY_VALUE, window=20))
    positions = torch.arange(S)
    values = torch.ones(S)
    values[13:] = 0.0
    # The token at 32 spares positions after 12.
    assert int(request.victim(positions, values, 32)) == 0


def test_window_gives_way_before_protected_tokens(isa: str) -> None:
    request = Request(HeadPlan(S, StoreRule.BY_VALUE, window=1000))
    values = torch.rand(S, generator=generator("w"))
    values[:5] = INF
    assert request.victim(torch.arange(S), values, 40) == 5


@pytest.mark.parametrize("rule", [StoreRule.BY_VALUE, StoreRule.BY_ENERGY, StoreRule.BY_AGE])
def test_oldest_goes_when_all_are_protected(isa: str, rule: StoreRule) -> None:
    request = Request(HeadPlan(2 * S, rule))
    positions = torch.arange(2 * S).flip(0)
    assert request.victim(positions, torch.full((2 * S,), INF), 100) == 2 * S - 1


def test_protected_class_stores_infinity(isa: str) -> None:
    plan = HeadPlan(3, StoreRule.BY_VALUE, protects=TokenClass.SPECIAL)
    request = Request(plan, HeadPlan(3))
    for position, token_class in enumerate(
        [TokenClass.PUNCTUATION, TokenClass.SPECIAL, TokenClass.SPECIAL | TokenClass.PUNCTUATION],
        start=50,
    ):
        request.store(position, token_class)
    assert request.cache.values[request.where(0)][3:].tolist() == [0.0, INF, INF]
    assert request.cache.values[request.where(1)][3:].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("rule", [StoreRule.BY_VALUE, StoreRule.BY_ENERGY, StoreRule.BY_AGE])
def test_long_runs_equal_the_reference(isa: str, rule: StoreRule) -> None:
    request = Request(
        HeadPlan(3 * S, rule, protects=TokenClass.SPECIAL, window=16, observed_from=90),
        HeadPlan(S, rule),
        dtype=torch.bfloat16,
        D=64,
    )
    for head, count in ((0, 3 * S), (1, S)):
        positions = torch.randperm(100, generator=request.rng)[:count]
        request.set_metadata(head, positions, torch.rand(count, generator=request.rng))
    for step in range(24):
        request.store(100 + step, TokenClass.SPECIAL if step % 3 == 0 else TokenClass.PLAIN)
        for head in range(2):
            where = request.where(head)
            count = where[0].numel()
            request.cache.values[where] += torch.rand(count, generator=request.rng)


@pytest.mark.parametrize(("S", "D"), [(S, D) for S, D, _ in SHAPES])
@pytest.mark.parametrize("R", [3, 48], ids=["one-thread", "all-threads"])
@pytest.mark.parametrize("dtype", [torch.float16])
def test_several_requests_and_layers(isa: str, dtype: torch.dtype, S: int, D: int, R: int) -> None:
    L, H = 2, 2
    rng = generator(S, D, R)
    plans = [HeadPlan(S, StoreRule.BY_VALUE), HeadPlan(S), HeadPlan(1, StoreRule.BY_AGE)]
    records, pages = make_records([*plans, HeadPlan(2 * S - 1)], L, H, S)
    blocks = -(-pages // (L * H)) + 1
    cache = make_cache(dtype, L, R * blocks, H, S, D)
    cache.arena.copy_(torch.randn(cache.arena.shape, generator=rng))
    cache.values.uniform_(generator=rng)
    cache.positions.random_(0, 200, generator=rng)
    rows = random_blocks(R * blocks, R * blocks, rng).view(R, blocks)
    heads = records.repeat(R + 2, 1, 1, 1)
    token_index = torch.randperm(R + 4, generator=rng)[:R]
    lanes = torch.randperm(R + 2, generator=rng)[:R].int()
    expected, expected_heads = cache.clone(), heads.clone()
    sides = (ops.store, cache, heads), (reference.store, expected, expected_heads)
    for position, layer in product(range(300, 303), range(L)):
        fused = torch.randn(R + 4, 2 * H, D, generator=rng).to(dtype)
        for op, to, records in sides:
            op(
                fused[:, :H],
                fused[:, H:],
                token_index,
                lanes,
                rows,
                position + torch.arange(R, dtype=torch.int32),
                torch.zeros(R, dtype=torch.int32),
                layer,
                to.arena,
                records,
                to.positions,
                to.values,
            )
    assert torch.equal(heads, expected_heads)
    assert torch.equal(cache.arena, expected.arena)
    assert torch.equal(cache.positions, expected.positions)
    assert torch.equal(cache.values, expected.values)


def test_bad_arguments_are_named() -> None:
    request = Request(HeadPlan(1), HeadPlan(1))
    ints = torch.zeros(1, dtype=torch.int32)

    def call(
        key: Tensor | None = None, index: Tensor | None = None, classes: Tensor = ints
    ) -> None:
        token = torch.zeros(1, 2, 32)
        ops.store(
            token if key is None else key,
            token,
            torch.tensor([0]) if index is None else index,
            ints,
            request.row,
            ints,
            classes,
            0,
            request.cache.arena,
            request.heads,
            request.cache.positions,
            request.cache.values,
        )

    with pytest.raises(ValueError, match=r"key must have shape \[any, 2, 32\], got \[1, 1, 32\]"):
        call(key=torch.zeros(1, 1, 32))
    with pytest.raises(ValueError, match="token_index must be int64, got int32"):
        call(index=ints)
    with pytest.raises(ValueError, match=r"token_class must have shape \[1\], got \[2\]"):
        call(classes=torch.zeros(2, dtype=torch.int32))
