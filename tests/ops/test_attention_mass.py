from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fastgen_vllm import ops
from fastgen_vllm.ops import reference
from fastgen_vllm.pages import stock_records
from tests.ops.cases import (
    DTYPES,
    POOLS,
    SHAPES,
    Cache,
    as_stream,
    generator,
    make_cache,
    random_blocks,
    random_tokens,
    relative_error,
    write_stock,
)

H = 2
STOCK = stock_records(2, H)


def prompt(
    dtype: torch.dtype, S: int, D: int, G: int, N: int, W: int, seed: object = 0
) -> tuple[Cache, Tensor, Tensor, list[Tensor]]:
    """A prompt of N tokens in layer 1 of a cache: cache, block row, last W queries, keys."""
    rng = generator(dtype, S, D, G, N, W, seed)
    pages = -(-N // S)
    cache = make_cache(dtype, 2, pages + 3, H, S, D)
    row = random_blocks(pages, pages + 3, rng)
    keys = []
    for head in range(H):
        key, value = random_tokens(N, D, dtype, rng)
        write_stock(cache, 1, row, head, key, value)
        keys.append(key)
    return cache, row, torch.randn(W, H * G, D, generator=rng).to(dtype), keys


def dense_sums(query: Tensor, keys: list[Tensor], scale: float, pool: str) -> tuple[Tensor, Tensor]:
    """Attention mass and energy from a masked N x N map, in the dtype of the arguments.

    Queries are added one after the other, as the op must.
    """
    W, N = query.shape[0], keys[0].shape[0]
    q = query.view(W, H, -1, query.shape[-1]).permute(1, 2, 0, 3)  # [H, G, W, D]
    scores = q @ torch.stack(keys)[:, None].transpose(-1, -2) * scale
    future = torch.arange(N) > torch.arange(N - W, N)[:, None]
    p = scores.masked_fill(future, float("-inf")).softmax(-1)
    sums = []
    for each in (p, p.square()):
        pooled = {"mean": each.mean(1), "max": each.amax(1), "min": each.amin(1)}[pool]
        total = torch.zeros(H, N, dtype=torch.promote_types(p.dtype, torch.float32))
        for i in range(W):
            total += pooled[:, i]
        sums.append(total)
    return sums[0], sums[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("S", "D", "G"), SHAPES)
def test_error_is_within_twice_that_of_torch(
    isa: str, dtype: torch.dtype, S: int, D: int, G: int
) -> None:
    for pool, (N, W) in zip(POOLS, [(S + 1, S + 1), (300, 40), (2 * S - 1, 5)], strict=True):
        cache, row, query, keys = prompt(dtype, S, D, G, N, W)
        actual = torch.zeros(2, H, N + 3)
        ops.attention_mass(query, cache.arena, 1, row, STOCK, N - W, D**-0.5, pool, *actual)
        exact = dense_sums(query.double(), [k.double() for k in keys], D**-0.5, pool)
        of_torch = dense_sums(query, keys, D**-0.5, pool)
        errors = [
            (relative_error(ours[:, :N], right), relative_error(theirs, right))
            for ours, theirs, right in zip(actual, of_torch, exact, strict=True)
        ]
        (mass_error, torch_mass_error), (energy_error, torch_energy_error) = errors
        assert mass_error <= 2 * torch_mass_error
        # In float32 torch's error can be below half a rounding: squares are allowed one more.
        assert energy_error <= 2 * torch_energy_error + torch.finfo(torch.float32).eps
        assert not actual[..., N:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_page_stream_gives_the_same_bits(isa: str, dtype: torch.dtype) -> None:
    N, W = 4 * 32 + 7, 70
    cache, row, query, _ = prompt(dtype, 32, 64, 3, N, W)
    stream, stream_row, heads = as_stream(cache, row, generator("stream", dtype))
    sums, of_stream = torch.zeros(2, 2, H, N)
    ops.attention_mass(query, cache.arena, 1, row, STOCK, N - W, 0.125, "mean", *sums)
    ops.attention_mass(query, stream.arena, 1, stream_row, heads, N - W, 0.125, "mean", *of_stream)
    assert torch.equal(sums, of_stream)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("N", "W"), [(1, 1), (31, 31), (32, 1), (33, 2), (200, 100)])
def test_equals_reference(isa: str, pool: str, N: int, W: int) -> None:
    cache, row, query, _ = prompt(torch.float32, 32, 64, 3, N, W)
    actual = torch.rand(2, H, N + 1, generator=generator(N))
    expected = actual.clone()
    ops.attention_mass(query, cache.arena, 1, row, STOCK, N - W, 0.125, pool, *actual)
    reference.attention_mass(query, cache.arena, 1, row, STOCK, N - W, 0.125, pool, *expected)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_more_queries_than_are_taken_together(isa: str) -> None:
    cache, row, query, _ = prompt(torch.float32, 32, 32, 2, 5000, 600)
    actual, expected = torch.zeros(2, 2, H, 5000)
    ops.attention_mass(query, cache.arena, 1, row, STOCK, 4400, 0.125, "mean", *actual)
    reference.attention_mass(query, cache.arena, 1, row, STOCK, 4400, 0.125, "mean", *expected)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("S", "D", "G"), SHAPES)
def test_split_of_queries_gives_the_same_bits(isa: str, S: int, D: int, G: int) -> None:
    N, W = 3 * S + 5, 2 * S
    cache, row, query, _ = prompt(torch.bfloat16, S, D, G, N, W)
    whole = torch.zeros(2, H, N)
    ops.attention_mass(query, cache.arena, 1, row, STOCK, N - W, D**-0.5, "mean", *whole)
    for cuts in ([1], [7, 8, 31], [W // 2, W - 1]):
        sums = torch.zeros(2, H, N)
        bounds = [0, *cuts, W]
        for first, end in pairwise(bounds):
            part = query[first:end]
            ops.attention_mass(
                part, cache.arena, 1, row, STOCK, N - W + first, D**-0.5, "mean", *sums
            )
        assert torch.equal(sums, whole)


@pytest.mark.parametrize("G", [1, 3])
def test_threads_do_not_change_the_bits(isa: str, G: int) -> None:
    """Blocks of a head are observed at the same time, and added in order."""
    cache, row, query, _ = prompt(torch.bfloat16, 32, 64, G, 700, 256)
    threads = torch.get_num_threads()
    sums = []
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            sums.append(torch.zeros(2, H, 700))
            ops.attention_mass(query, cache.arena, 1, row, STOCK, 444, 0.125, "mean", *sums[-1])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(sums[0], sums[1]) and torch.equal(sums[0], sums[2])


def test_mass_of_every_query_sums_to_one(isa: str) -> None:
    cache, row, query, _ = prompt(torch.float16, 32, 64, 4, 150, 60)
    mass, energy = torch.zeros(2, H, 150)
    ops.attention_mass(query, cache.arena, 1, row, STOCK, 90, 0.125, "mean", mass, energy)
    torch.testing.assert_close(mass.sum(1), torch.full((H,), 60.0), rtol=1e-5, atol=0)


def test_energy_of_even_attention_by_hand(isa: str) -> None:
    """A query of zeros at position i gives 1 / (i + 1) to each token: here thirds and quarters."""
    cache, row, query, _ = prompt(torch.float32, 32, 64, 3, 4, 2)
    mass, energy = torch.zeros(2, H, 4)
    query.zero_()
    ops.attention_mass(query, cache.arena, 1, row, STOCK, 2, 0.125, "mean", mass, energy)
    seen_by_both, seen_by_last = 1 / 9 + 1 / 16, 1 / 16
    expected = torch.tensor([[seen_by_both] * 3 + [seen_by_last]] * H)
    torch.testing.assert_close(energy, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("pool", "pooled"), [("mean", 0.5), ("max", 1.0), ("min", 0.0)])
def test_energy_pools_squares(isa: str, pool: str, pooled: float) -> None:
    """Two query heads, each sure of another token: the square of the mean would be 1/4."""
    key = torch.eye(2, 32)
    cache = make_cache(torch.float32, 2, 1, H, 32, 32)
    row = torch.zeros(1, dtype=torch.int32)
    for head in range(H):
        write_stock(cache, 1, row, head, key, key)
    mass, energy = torch.zeros(2, H, 2)
    query = key.repeat(H, 1)[None]  # [1, H*G, D]
    ops.attention_mass(query, cache.arena, 1, row, STOCK, 1, 100.0, pool, mass, energy)
    torch.testing.assert_close(energy, torch.full((H, 2), pooled), rtol=1e-6, atol=1e-6)


def test_strided_query_mass_and_energy(isa: str) -> None:
    cache, row, query, _ = prompt(torch.float32, 32, 64, 3, 70, 20)
    wide = torch.zeros(20, 2 * H * 3, 128)
    wide[:, ::2, :64] = query
    expected = torch.zeros(2, H, 70)
    ops.attention_mass(query, cache.arena, 1, row, STOCK, 50, 0.125, "max", *expected)
    # Three different strides: 70, 200 and 300.
    mass, energy = torch.zeros(H, 200)[:, :70], torch.zeros(H, 300)[:, 9:79]
    strided = wide[:, ::2, :64]
    ops.attention_mass(strided, cache.arena, 1, row, STOCK, 50, 0.125, "max", mass, energy)
    assert torch.equal(mass, expected[0])
    assert torch.equal(energy, expected[1])


def test_bad_arguments_are_named() -> None:
    cache, row, query, _ = prompt(torch.float32, 32, 64, 3, 70, 20)
    mass, energy = torch.zeros(2, H, 70)

    def call(
        query: Tensor = query,
        arena: Tensor = cache.arena,
        layer: int = 1,
        row: Tensor = row,
        first: int = 50,
        pool: str = "mean",
        mass: Tensor = mass,
        energy: Tensor = energy,
    ) -> None:
        ops.attention_mass(query, arena, layer, row, STOCK, first, 0.125, pool, mass, energy)

    with pytest.raises(ValueError, match="query must be float32, got bfloat16"):
        call(query=query.bfloat16())
    with pytest.raises(ValueError, match=r"query must have shape \[any, any, 64\]"):
        call(query=query[..., :32])
    with pytest.raises(ValueError, match="multiple of H = 2"):
        call(query=query[:, :5])
    with pytest.raises(ValueError, match="arena must be float32, float16 or bfloat16"):
        call(arena=cache.arena.double())
    with pytest.raises(ValueError, match="arena must be contiguous in its last two"):
        call(arena=cache.arena.transpose(3, 4))
    with pytest.raises(ValueError, match=r"layer must be in \[0, 2\), got 2"):
        call(layer=2)
    with pytest.raises(ValueError, match="block_row must be int32, got int64"):
        call(row=row.long())
    with pytest.raises(ValueError, match="block_row must have 3 blocks for the 70 slots"):
        call(row=row[:2])
    with pytest.raises(ValueError, match="first_position must be at least 0"):
        call(first=-1)
    with pytest.raises(ValueError, match="pool must be one of mean, max, min, got 'sum'"):
        call(pool="sum")
    with pytest.raises(ValueError, match="mass must have room for 70 tokens"):
        call(mass=mass[:, :69])
    with pytest.raises(ValueError, match="energy must have room for 70 tokens"):
        call(energy=energy[:, :69])
    with pytest.raises(ValueError, match=r"energy must have shape \[2, any\], got \[1, 70\]"):
        call(energy=energy[:1])
    with pytest.raises(ValueError, match="energy must be float32, got float16"):
        call(energy=energy.half())


def test_what_is_not_aligned_is_refused() -> None:
    """On a GPU the first access would end every later call of the process."""
    L, B, H, S, D, W = 1, 3, 2, 32, 32, 8
    size = L * B * H * 2 * S * D
    row, sums = torch.arange(B, dtype=torch.int32), torch.zeros(2, H, W)
    query = torch.zeros(W, H, D, dtype=torch.bfloat16)

    def call(query: Tensor, arena: Tensor) -> None:
        ops.attention_mass(query, arena, 0, row, stock_records(L, H), 0, 1.0, "mean", *sums)

    arena = torch.zeros(size + 8, dtype=torch.bfloat16)
    call(query, arena[8:].view(L, B, H, 2 * S, D))
    with pytest.raises(
        ValueError, match=r"arena must begin at a multiple of 16 .* of 2 beyond one"
    ):
        call(query, arena[1 : size + 1].view(L, B, H, 2 * S, D))
    gaps = torch.zeros(B, 2 * S * D * H + 4, dtype=torch.bfloat16)[:, 4:]
    with pytest.raises(ValueError, match=r"arena must .* strides \[.*4100, 2048, 32, 1\]"):
        call(query, gaps.view(B, H, 2 * S, D)[None])
    wide = torch.zeros(W, H * D + 1, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="query must begin at a multiple of 4 bytes, in every"):
        call(wide[:, :-1].view(W, H, D), arena[8:].view(L, B, H, 2 * S, D))
