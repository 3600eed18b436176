import pytest
import torch
from torch import Tensor

from fastgen_vllm import ops
from fastgen_vllm.geometry import HeadField, StoreRule
from fastgen_vllm.ops import reference
from fastgen_vllm.pages import stock_records
from tests.ops.cases import (
    DTYPES,
    SHAPES,
    HeadPlan,
    as_stream,
    generator,
    make_cache,
    make_records,
    random_blocks,
    random_kept,
    random_tokens,
    write_stock,
)

L, H = 2, 3
STOCK = stock_records(L, H)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("S", "D"), [(S, D) for S, D, _ in SHAPES])
def test_kept_tokens_arrive(isa: str, dtype: torch.dtype, S: int, D: int) -> None:
    rng = generator(dtype, S, D)
    N = 4 * S + 3
    lengths = [1, S - 1, S, S + 1, N, 3 * S]
    # Head 5 holds its tokens beyond its fixed interval, in growth pages.
    plans = [HeadPlan(n, StoreRule.BY_VALUE) for n in lengths[:4]]
    plans += [HeadPlan(lengths[4]), HeadPlan(lengths[5], fixed=1)]
    records, pages = make_records(plans, L, H, S)
    old_count, new_count = -(-N // S), -(-pages // (L * H))
    num_blocks = old_count + new_count + 4
    cache = make_cache(dtype, L, num_blocks, H, S, D, fill=0.0)
    blocks = random_blocks(old_count + new_count, num_blocks, rng)
    old_row, new_row = blocks[:old_count], blocks[old_count:]

    tokens = [random_tokens(N, D, dtype, rng) for _ in range(L * H)]
    for index, (key, value) in enumerate(tokens):
        write_stock(cache, index // H, old_row, index % H, key, value)
    kept, start, kept_value = random_kept(lengths, N, rng)
    kept_value[::7] = float("inf")
    expected = cache.clone()

    for op, to in ((ops.compact, cache), (reference.compact, expected)):
        op(
            to.arena,
            old_row,
            STOCK,
            to.arena[:, :0],
            new_row,
            torch.cat(kept),
            torch.cat(kept),
            start,
            kept_value,
            records,
            to.positions,
            to.values,
        )
    assert torch.equal(cache.arena, expected.arena)
    assert torch.equal(cache.positions, expected.positions)
    assert torch.equal(cache.values, expected.values)
    for index, (key, value) in enumerate(tokens):
        record = records[index // H, index % H]
        k, v = reference.keys_and_values(cache.arena, new_row, record)
        assert torch.equal(k, key[kept[index].long()])
        assert torch.equal(v, value[kept[index].long()])
        where = reference.slots_of(cache.arena, new_row, record)
        assert torch.equal(cache.positions[where], kept[index])
        assert torch.equal(cache.values[where], kept_value[start[index] : start[index + 1]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_lies_on_stock_pages_stays(isa: str, dtype: torch.dtype) -> None:
    """The first two blocks are in both rows, at the same places."""
    S, D, stock = 32, 64, 2
    rng = generator("stock", dtype)
    N = 4 * S + 3
    own = [0, 1, S - 1, S + 1, 2 * S, N - stock * S]
    plans = [HeadPlan(stock * S + n, StoreRule.BY_VALUE) for n in own]
    records, pages = make_records(plans, L, H, S, stock, stock)
    old_count, new_count = -(-N // S), -(-pages // (L * H))
    cache = make_cache(dtype, L, old_count + new_count, H, S, D, fill=0.0)
    blocks = random_blocks(old_count + new_count, old_count + new_count, rng)
    old_row = blocks[:old_count]
    new_row = torch.cat([blocks[:stock], blocks[old_count : old_count + new_count - stock]])
    tokens = [random_tokens(N, D, dtype, rng) for _ in range(L * H)]
    for index, (key, value) in enumerate(tokens):
        write_stock(cache, index // H, old_row, index % H, key, value)
    kept, start, kept_value = random_kept(own, N - stock * S, rng)
    kept = [positions + stock * S for positions in kept]
    before, expected = cache.clone(), cache.clone()

    for op, to in ((ops.compact, cache), (reference.compact, expected)):
        op(
            *(to.arena, old_row, STOCK, to.arena[:, :0], new_row, torch.cat(kept), torch.cat(kept)),
            *(start, kept_value, records, to.positions, to.values),
        )
    assert torch.equal(cache.arena, expected.arena)
    assert torch.equal(cache.positions, expected.positions)
    assert torch.equal(cache.values, expected.values)
    stays = blocks[:old_count].long()
    assert torch.equal(cache.arena[:, stays], before.arena[:, stays])
    assert torch.equal(cache.positions[stays], before.positions[stays])
    for index, (key, value) in enumerate(tokens):
        k, v = reference.keys_and_values(cache.arena, new_row, records[index // H, index % H])
        held = torch.cat([torch.arange(stock * S), kept[index].long()])
        assert torch.equal(k, key[held])
        assert torch.equal(v, value[held])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("S", "D"), [(S, D) for S, D, _ in SHAPES])
def test_overlapping_rows_give_what_disjoint_ones_give(
    isa: str, dtype: torch.dtype, S: int, D: int
) -> None:
    """Of the blocks in both rows copies are read, of the others those of the arena."""
    rng = generator("both", dtype, S, D)
    N, B = 3 * S - 2, 6
    plans = [HeadPlan(n, StoreRule.BY_VALUE) for n in (5, S + 8, S + 1, 1, 2 * S, N)]
    records, pages = make_records(plans, L, H, S)
    assert pages <= 2 * L * H
    old_row = torch.tensor([3, 1, 2], dtype=torch.int32)
    cache = make_cache(dtype, L, B, H, S, D, fill=0.0)
    for index in range(L * H):
        tokens = random_tokens(N, D, dtype, rng)
        write_stock(cache, index // H, old_row, index % H, *tokens)
    lengths = [plan.length for plan in plans]
    kept, start, kept_value = random_kept(lengths, N, rng)
    saved = cache.arena.index_select(1, torch.tensor([1, 3]))
    before, untouched = saved.clone(), cache.clone()

    def run(old_row: list[int], saved: Tensor, new_row: list[int]) -> list[Tensor]:
        """Everything that the heads hold afterwards."""
        to, row = cache.clone(), torch.tensor(new_row, dtype=torch.int32)
        ops.compact(
            to.arena,
            torch.tensor(old_row, dtype=torch.int32),
            STOCK,
            saved,
            row,
            torch.cat(kept),
            torch.cat(kept),
            start,
            kept_value,
            records,
            to.positions,
            to.values,
        )
        others = [block for block in range(B) if block not in new_row]
        assert torch.equal(to.arena[:, others], untouched.arena[:, others])
        held: list[Tensor] = []
        for record in records.view(L * H, -1):
            where = reference.slots_of(to.arena, row, record)
            held += reference.keys_and_values(to.arena, row, record)
            held += to.positions[where], to.values[where]
        return held

    apart = run([3, 1, 2], cache.arena[:, :0], [4, 0])
    for old, new in (([B + 1, B, 2], [1, 3]), ([B + 1, B, 2], [3, 5])):
        together = run(old, saved, new)
        assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))
    assert torch.equal(saved, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_page_stream_is_compacted_again(isa: str, dtype: torch.dtype) -> None:
    """Slots of a stream, in any order, of which a block is in both rows."""
    S, D = 32, 64
    rng = generator("again", dtype)
    N = 4 * S
    cache = make_cache(dtype, L, 4, H, S, D, fill=0.0)
    row = random_blocks(4, 4, rng)
    tokens = [random_tokens(N, D, dtype, rng) for _ in range(L * H)]
    for index, (key, value) in enumerate(tokens):
        write_stock(cache, index // H, row, index % H, key, value)
    stream, old_row, old_heads = as_stream(cache, row, rng)
    lengths = [0, 1, S - 1, S + 1, 3 * S, N]
    plans = [HeadPlan(n, StoreRule.BY_AGE) for n in lengths[:5]] + [HeadPlan(N, fixed=1)]
    records, pages = make_records(plans, L, H, S)
    new = -(-pages // (L * H))
    blocks, pool = stream.arena.shape[1], make_cache(dtype, L, len(old_row) + new + 2, H, S, D, 0.0)
    assert blocks <= pool.arena.shape[1]
    pool.arena[:, :blocks] = stream.arena
    others = [b for b in range(pool.arena.shape[1]) if b not in old_row]
    new_row = torch.tensor([int(old_row[1]), *others][:new], dtype=torch.int32)
    saved = pool.arena[:, old_row[1:2].long()]
    old_row[1] = len(pool.values)
    kept = [torch.randperm(N, generator=rng)[:n].int() for n in lengths]
    start = torch.tensor([0, *lengths]).cumsum(0)
    position = torch.randint(9999, (len(torch.cat(kept)),), generator=rng).int()
    kept_value, expected = torch.rand(len(position), generator=rng), pool.clone()

    for op, to in ((ops.compact, pool), (reference.compact, expected)):
        op(
            *(to.arena, old_row, old_heads, saved, new_row, torch.cat(kept), position),
            *(start, kept_value, records, to.positions, to.values),
        )
    torch.testing.assert_close(pool.arena, expected.arena, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(pool.positions, expected.positions)
    assert torch.equal(pool.values, expected.values)
    for index, (key, value) in enumerate(tokens):
        if lengths[index] == 0:
            continue
        record = records[index // H, index % H]
        k, v = reference.keys_and_values(pool.arena, new_row, record)
        assert torch.equal(k, key[kept[index].long()])
        assert torch.equal(v, value[kept[index].long()])
        where = reference.slots_of(pool.arena, new_row, record)
        assert torch.equal(pool.positions[where], position[start[index] : start[index + 1]])


def test_arguments_must_agree() -> None:
    records, _ = make_records([HeadPlan(2) for _ in range(L * H)], L, H, 32)
    cache = make_cache(torch.float32, L, 4, H, 32, 32)
    row = torch.tensor([0], dtype=torch.int32)
    kept = torch.zeros(12, dtype=torch.int32)
    start = torch.arange(0, 13, 2)

    def call(start: Tensor = start, row: Tensor = row, saved: Tensor = cache.arena[:, :0]) -> None:
        ops.compact(
            cache.arena,
            row,
            STOCK,
            saved,
            torch.ones(1, dtype=torch.int32),
            kept,
            kept,
            start,
            torch.zeros(12),
            records,
            cache.positions,
            cache.values,
        )

    with pytest.raises(ValueError, match="kept_start must run from 0 to the 12 tokens"):
        call(start=start + 1)
    with pytest.raises(ValueError, match="kept_start must be int64, got int32"):
        call(start=start.int())
    with pytest.raises(ValueError, match=r"kept_start must have shape \[7\], got \[6\]"):
        call(start=start[1:])
    with pytest.raises(ValueError, match="old_row must be contiguous"):
        call(row=torch.zeros(4, dtype=torch.int32)[::2])
    with pytest.raises(ValueError, match="saved must have the dtype and shape of arena, except"):
        call(saved=cache.arena[:1, :2])
    with pytest.raises(ValueError, match="saved must have the dtype and shape of arena, except"):
        call(saved=cache.arena[:, :0].half())
    for count in (0, 2):  # saved blocks
        saved = cache.arena[:, :count].contiguous()
        with pytest.raises(ValueError, match=rf"blocks in \[0, {4 + count}\), got {4 + count}"):
            call(row=row + 4 + count, saved=saved)
    call(row=row + 5, saved=saved)
    records[0, 1, HeadField.LENGTH] = 3
    with pytest.raises(ValueError, match=r"gives 2 tokens to heads\[0, 1\], its LENGTH is 3"):
        call()
