"""One small check of each CUDA kernel against its reference, for whatever runs the kernel."""

import torch

from fastgen_vllm.geometry import StoreRule, TokenClass
from fastgen_vllm.ops import reference
from fastgen_vllm.pages import stock_records
from tests.cuda.emulated import EmulatedOps
from tests.ops.cases import (
    HeadPlan,
    generator,
    make_cache,
    make_records,
    random_blocks,
    random_kept,
    random_tokens,
    write_stock,
)
from tests.ops.test_attention_mass import STOCK, prompt
from tests.ops.test_decode_attention import Step
from tests.ops.test_replay import angles

S = 16


def check_decode_attention(
    ops: EmulatedOps, dtype: torch.dtype, D: int, G: int, lengths: tuple[int, ...] = (1, 33, 90, 31)
) -> None:
    """Heads over several blocks, and scores of which some have to be computed again."""
    step = Step(list(lengths), dtype, S, D, G, StoreRule.BY_VALUE)
    ops.num_blocks, ops.scored_pages = 3, 5
    values, expected = torch.zeros(2, *step.cache.values.shape)
    output = step.run("mean", values, ops.decode_attention)
    expected_output = step.run("mean", expected, reference.decode_attention)
    error = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(output, expected_output, rtol=error, atol=error)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


def check_attention_mass(
    ops: EmulatedOps, dtype: torch.dtype, D: int, G: int, N: int = 90, W: int = 37
) -> None:
    """More than one tile of tokens and of queries, neither whole."""
    cache, row, query, _ = prompt(dtype, S, D, G, N, W)
    actual, expected = torch.zeros(2, 2, 2, N)
    ops.attention_mass(query, cache.arena, 1, row, STOCK, N - W, D**-0.5, "mean", *actual)
    reference.attention_mass(query, cache.arena, 1, row, STOCK, N - W, D**-0.5, "mean", *expected)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def check_replay(
    ops: EmulatedOps, dtype: torch.dtype, D: int, G: int, first: int = 64, W: int = 77
) -> None:
    """More than one tile of queries and of tokens, the last not whole; keys before the block."""
    cache, row, query, _ = prompt(dtype, S, D, G, first + W, W)
    actual, expected = torch.zeros(2, *cache.values.shape)
    turn = angles(D // 2, W)
    for op, values in ((ops.replay, actual), (reference.replay, expected)):
        op(query, cache.arena, 1, row, STOCK, first, D**-0.5, "mean", turn, False, 8, values)
    error = 1e-4 if dtype == torch.float32 else 2e-2  # turned queries are rounded to the dtype
    torch.testing.assert_close(actual, expected, rtol=error, atol=1e-4)


def check_replayed_mass(
    ops: EmulatedOps, dtype: torch.dtype, D: int, G: int, N: int = 90, W: int = 37
) -> None:
    """More than one tile of tokens and of queries, neither whole."""
    cache, row, query, _ = prompt(dtype, S, D, G, N, W)
    actual, expected = torch.zeros(2, 2, 2, N)
    turn = angles(D // 2, W)
    for op, sums in ((ops.replayed_mass, actual), (reference.replayed_mass, expected)):
        op(query, cache.arena, 1, row, STOCK, N - W, D**-0.5, "mean", turn, False, *sums)
    error = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(actual, expected, rtol=error, atol=1e-3)


def check_store(ops: EmulatedOps) -> None:
    """Beside a head that appends, one that replaces a token in its window, or outside of it."""
    H, D, R = 2, 64, 2
    rng = generator("check store")
    full = HeadPlan(2 * S, StoreRule.BY_VALUE, protects=TokenClass.SPECIAL, window=150)
    records, pages = make_records([full, HeadPlan(S - 1)], 1, H, S)
    blocks = -(-pages // H) + 1
    cache = make_cache(torch.bfloat16, 1, R * blocks, H, S, D, fill=0.0)
    cache.values.uniform_(generator=rng)
    cache.positions.random_(0, 200, generator=rng)
    rows = random_blocks(R * blocks, R * blocks, rng).view(R, blocks)
    heads = records.repeat(R, 1, 1, 1)
    key, value = torch.randn(2, R, H, D, generator=rng).bfloat16()
    expected, expected_heads = cache.clone(), heads.clone()
    for op, to, of in (
        (ops.store, cache, heads),
        (reference.store, expected, expected_heads),
    ):
        op(
            key,
            value,
            torch.arange(R),
            torch.arange(R, dtype=torch.int32),
            rows,
            torch.tensor([300, 100], dtype=torch.int32),
            torch.zeros(R, dtype=torch.int32),
            0,
            to.arena,
            of,
            to.positions,
            to.values,
        )
    assert torch.equal(heads, expected_heads)
    assert torch.equal(cache.arena, expected.arena)
    assert torch.equal(cache.positions, expected.positions)
    assert torch.equal(cache.values, expected.values)


def check_compact(ops: EmulatedOps) -> None:
    """The last page of a head is partial, and whole; a block of the prompt is a saved one."""
    L, H, D, N = 1, 2, 96, 45
    rng = generator("check compact")
    lengths = [33, 16]
    records, _ = make_records([HeadPlan(n, StoreRule.BY_AGE) for n in lengths], L, H, S)
    cache = make_cache(torch.float16, L, 7, H, S, D, fill=0.0)
    blocks = random_blocks(5, 7, rng)
    old_row, new_row = blocks[:3].clone(), blocks[2:].clone()
    for head in range(H):
        write_stock(cache, 0, old_row, head, *random_tokens(N, D, torch.float16, rng))
    kept, start, kept_value = random_kept(lengths, N, rng)
    saved = cache.arena[:, old_row[2:].long()]
    old_row[2] = len(cache.values)
    expected = cache.clone()
    for op, to in ((ops.compact, cache), (reference.compact, expected)):
        op(
            to.arena,
            old_row,
            stock_records(L, H),
            saved,
            new_row,
            torch.cat(kept),
            torch.cat(kept) + 1000,
            start,
            kept_value,
            records,
            to.positions,
            to.values,
        )
    assert torch.equal(cache.arena, expected.arena)
    assert torch.equal(cache.positions, expected.positions)
    assert torch.equal(cache.values, expected.values)


def check_value_norm(ops: EmulatedOps) -> None:
    L, H, D, N = 2, 2, 96, 45
    rng = generator("check norm")
    cache = make_cache(torch.float16, L, 5, H, S, D)
    row = random_blocks(3, 5, rng)
    for layer in range(L):
        for head in range(H):
            write_stock(cache, layer, row, head, *random_tokens(N, D, torch.float16, rng))
    norm, expected = torch.zeros(2, L, H, N)
    heads = stock_records(L, H)
    ops.value_norm(cache.arena, row, heads, norm)
    reference.value_norm(cache.arena, row, heads, expected)
    torch.testing.assert_close(norm, expected)
