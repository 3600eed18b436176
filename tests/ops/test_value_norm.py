import pytest
import torch

from fastgen_vllm import ops
from fastgen_vllm.ops import reference
from fastgen_vllm.pages import stock_records
from tests.ops.cases import (
    DTYPES,
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

L, H = 2, 3
STOCK = stock_records(L, H)


def make_prompt(dtype: torch.dtype, S: int, D: int, N: int) -> tuple[Cache, torch.Tensor]:
    """A prompt's stock pages among pages of NaN, and its block row."""
    rng = generator("norm", dtype, S, D, N)
    blocks = -(-N // S)
    cache = make_cache(dtype, L, blocks + 2, H, S, D)
    row = random_blocks(blocks, blocks + 2, rng)
    for layer in range(L):
        for head in range(H):
            write_stock(cache, layer, row, head, *random_tokens(N, D, dtype, rng))
    return cache, row


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("S", "D"), sorted({(S, D) for S, D, _ in SHAPES}))
def test_error_is_within_rounding(isa: str, dtype: torch.dtype, S: int, D: int) -> None:
    for N in (1, S - 1, S, S + 1, 3 * S + 7):
        cache, row = make_prompt(dtype, S, D, N)
        norm, expected = torch.full((2, L, H, N), float("nan"))
        ops.value_norm(cache.arena, row, STOCK, norm)
        reference.value_norm(cache.arena, row, STOCK, expected)
        _, values = reference.page_of(cache.arena, 1, int(row[0]), 2)
        exact = values[: min(N, S)].double().norm(dim=-1)
        eps = torch.finfo(torch.float32).eps
        assert relative_error(norm[1, 2, : len(exact)], exact) <= 2 * eps
        assert relative_error(norm, expected.double()) <= 2 * eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_page_stream_gives_the_same_bits(isa: str, dtype: torch.dtype) -> None:
    S, D, N = 32, 96, 4 * 32 + 7
    cache, row = make_prompt(dtype, S, D, N)
    norm, of_stream = torch.full((2, L, H, N), float("nan"))
    ops.value_norm(cache.arena, row, STOCK, norm)
    stream, stream_row, heads = as_stream(cache, row, generator("stream", dtype))
    ops.value_norm(stream.arena, stream_row, heads, of_stream)
    assert torch.equal(norm, of_stream)


def test_bad_arguments_are_named() -> None:
    cache, row = make_prompt(torch.float32, 32, 32, 70)
    with pytest.raises(ValueError, match=r"block_row must have 4 blocks for the 97 slots of heads"):
        ops.value_norm(cache.arena, row, STOCK, torch.empty(L, H, 97))
    with pytest.raises(ValueError, match="norm"):
        ops.value_norm(cache.arena, row, STOCK, torch.empty(L, H + 1, 70))
    with pytest.raises(ValueError, match="block_row"):
        ops.value_norm(cache.arena, row.long(), STOCK, torch.empty(L, H, 70))
    with pytest.raises(ValueError, match=r"heads must have shape \[2, 3, 16\], got \[1, 3, 16\]"):
        ops.value_norm(cache.arena, row, STOCK[:1], torch.empty(L, H, 70))
