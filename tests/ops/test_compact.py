import pytest
import torch

from fastgen_vllm import ops
from fastgen_vllm.geometry import HeadField, StoreRule
from fastgen_vllm.ops import reference
from tests.ops.cases import (
    DTYPES,
    SHAPES,
    HeadPlan,
    generator,
    make_cache,
    make_records,
    random_blocks,
    random_tokens,
    write_stock,
)

L, H = 2, 3


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
    kept = [torch.randperm(N, generator=rng)[:n].sort().values.int() for n in lengths]
    start = torch.tensor([0, *lengths]).cumsum(0)
    kept_value = torch.rand(sum(lengths), generator=rng)
    kept_value[::7] = float("inf")
    expected = cache.clone()

    for op, to in ((ops.compact, cache), (reference.compact, expected)):
        op(
            to.arena,
            old_row,
            to.arena,
            new_row,
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


def test_from_a_copy_into_the_same_blocks(isa: str) -> None:
    """New blocks may be the old ones if the tokens are read from a copy."""
    rng = generator("copy")
    S = D = 32
    plans = [HeadPlan(n, StoreRule.BY_VALUE) for n in (5, 40, 33, 1, 64, 50)]
    records, pages = make_records(plans, L, H, S)
    old_row = torch.tensor([3, 1, 2], dtype=torch.int32)
    new_row = torch.tensor([1, 3], dtype=torch.int32)
    assert pages <= 2 * L * H
    cache = make_cache(torch.float32, L, 4, H, S, D, fill=0.0)
    tokens = [random_tokens(3 * S, D, torch.float32, rng) for _ in plans]
    for index, (key, value) in enumerate(tokens):
        write_stock(cache, index // H, old_row, index % H, key, value)
    kept = [torch.arange(3 * S - plan.length, 3 * S).int() for plan in plans]
    ops.compact(
        cache.arena[:, old_row.long()].contiguous(),
        torch.arange(3, dtype=torch.int32),
        cache.arena,
        new_row,
        torch.cat(kept),
        torch.tensor([0, *(plan.length for plan in plans)]).cumsum(0),
        torch.zeros(sum(plan.length for plan in plans)),
        records,
        cache.positions,
        cache.values,
    )
    for index, (key, value) in enumerate(tokens):
        k, v = reference.keys_and_values(cache.arena, new_row, records[index // H, index % H])
        assert torch.equal(k, key[kept[index].long()])
        assert torch.equal(v, value[kept[index].long()])


def test_lengths_must_agree() -> None:
    records, _ = make_records([HeadPlan(2) for _ in range(L * H)], L, H, 32)
    cache = make_cache(torch.float32, L, 4, H, 32, 32)
    row = torch.tensor([0], dtype=torch.int32)
    kept = torch.zeros(12, dtype=torch.int32)
    start = torch.arange(0, 13, 2)

    def call(start: torch.Tensor = start, row: torch.Tensor = row) -> None:
        ops.compact(
            cache.arena,
            row,
            cache.arena,
            row + 1,
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
    records[0, 1, HeadField.LENGTH] = 3
    with pytest.raises(ValueError, match=r"gives 2 tokens to heads\[0, 1\], its LENGTH is 3"):
        call()
