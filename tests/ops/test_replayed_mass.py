from itertools import product

import pytest
import torch
from torch import Tensor

from fastgen_vllm import ops
from tests.ops.cases import DTYPES, POOLS, SHAPES, as_stream, generator, relative_error
from tests.ops.test_attention_mass import STOCK, H, prompt
from tests.ops.test_replay import angles

LAYER = 1


def dense(query: Tensor, keys: list[Tensor], pool: str, turn: Tensor) -> tuple[Tensor, Tensor]:
    """[H, N] mass and energy, in the dtype of the arguments, one query after the other."""
    W, N, D = len(query), len(keys[0]), query.shape[2]
    cos, sin = turn.to(query.dtype)
    P = len(cos)
    kind = torch.promote_types(query.dtype, torch.float32)
    mass, energy = torch.zeros(2, H, N, dtype=kind)
    for (h, key), i in product(enumerate(keys), range(N - W, N)):
        q = query[i - N + W].view(H, -1, D)[h]  # [G, D]
        x, y, rest = q[:, :P], q[:, P : 2 * P], q[:, 2 * P :]
        behind = torch.cat([x * cos - y * sin, y * cos + x * sin, rest], -1)
        scores = [behind @ key.T, q @ key[max(0, i - 31) : i + 1].T]
        p = (torch.cat(scores, -1) * D**-0.5).softmax(-1)[:, :N]
        for total, each in ((mass, p), (energy, p.square())):
            total[h] += {"mean": each.mean(0), "max": each.amax(0), "min": each.amin(0)}[pool]
    return mass, energy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("S", "D", "G"), SHAPES)
def test_error_is_within_twice_that_of_torch(
    isa: str, dtype: torch.dtype, S: int, D: int, G: int
) -> None:
    cases = [(S + 1, S + 1, D // 2), (300, 40, D // 4), (2 * S - 1, 5, 0)]
    for pool, (N, W, pairs) in zip(POOLS, cases, strict=True):
        cache, row, query, keys = prompt(dtype, S, D, G, N, W)
        turn = angles(pairs, W)
        actual = torch.zeros(2, H, N + 3)
        ops.replayed_mass(
            query, cache.arena, LAYER, row, STOCK, N - W, D**-0.5, pool, turn, False, *actual
        )
        exact = dense(query.double(), [k.double() for k in keys], pool, turn.double())
        of_torch = dense(query, keys, pool, turn)
        for ours, theirs, right in zip(actual, of_torch, exact, strict=True):
            allowed = 2 * relative_error(theirs, right) + 2 * torch.finfo(torch.float32).eps
            assert relative_error(ours[:, :N], right) <= allowed
        assert not actual[..., N:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_page_stream_gives_the_same_bits(isa: str, dtype: torch.dtype) -> None:
    N, W = 4 * 32 + 7, 70
    cache, row, query, _ = prompt(dtype, 32, 64, 3, N, W)
    stream, stream_row, heads = as_stream(cache, row, generator("stream", dtype))
    sums, of_stream = torch.zeros(2, 2, H, N)
    asked = (N - W, 0.125, "mean", angles(32, W), False)
    ops.replayed_mass(query, cache.arena, LAYER, row, STOCK, *asked, *sums)
    ops.replayed_mass(query, stream.arena, LAYER, stream_row, heads, *asked, *of_stream)
    assert torch.equal(sums, of_stream)


def test_mass_and_what_is_near_are_all(isa: str) -> None:
    """Without a turn a query's probabilities and those of its 32 neighbours, twice, sum to 1."""
    N, W, D = 200, 30, 64
    cache, row, query, keys = prompt(torch.float32, 32, D, 1, N, W)
    mass, energy = torch.zeros(2, H, N)
    none = torch.zeros(2, 0)
    ops.replayed_mass(
        query, cache.arena, LAYER, row, STOCK, N - W, D**-0.5, "mean", none, False, mass, energy
    )
    for h, key in enumerate(keys):
        weights = (query[:, h] @ key.T * D**-0.5).exp()
        position = torch.arange(N - W, N)[:, None]
        token = torch.arange(N)
        near = weights * ((token <= position) & (token > position - 32))
        share = weights.sum(-1) / (weights.sum(-1) + near.sum(-1))
        torch.testing.assert_close(mass[h].sum(), share.sum(), rtol=1e-5, atol=0)


def test_a_turn_beyond_the_head_is_refused() -> None:
    cache, row, query, _ = prompt(torch.float32, 32, 64, 2, 64, 32)
    mass, energy = torch.zeros(2, H, 64)
    with pytest.raises(ValueError, match="replayed_mass: turn must have at most D / 2 = 32 angles"):
        ops.replayed_mass(
            query, cache.arena, LAYER, row, STOCK, 32, 0.1, "mean", angles(33), False, mass, energy
        )
