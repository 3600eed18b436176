import pytest
import torch
from torch import Tensor

from fastgen_vllm import ops
from fastgen_vllm.geometry import HeadField
from fastgen_vllm.ops import reference
from tests.ops.cases import DTYPES, POOLS, SHAPES, Cache, as_stream, generator, relative_error
from tests.ops.test_attention_mass import STOCK, H, prompt

LAYER = 1
SAMPLES = [1, 8, 32]


def angles(pairs: int, by: int = 512) -> Tensor:
    """[2, pairs], cosines and sines of a usual rotary embedding, by some positions."""
    angle = by * 10_000.0 ** -(torch.arange(pairs) / max(pairs, 1))
    return torch.stack([angle.cos(), angle.sin()])


def dense(
    query: Tensor, keys: list[Tensor], first: int, pool: str, turn: Tensor, sample: int
) -> Tensor:
    """[H, W] energy of the block's tokens, in the dtype of the arguments, row by row."""
    W, end = len(query), first + len(query)
    G, D = query.shape[1] // H, query.shape[2]
    cos, sin = turn.to(query.dtype)
    P = len(cos)
    energy = torch.zeros(H, W, dtype=torch.promote_types(query.dtype, torch.float32))
    for h, k in enumerate(keys):
        for i in range(first, end):
            squares = []
            for q in query[i - first, h * G : (h + 1) * G]:
                x, y, rest = q[:P], q[P : 2 * P], q[2 * P :]
                behind = torch.cat([x * cos - y * sin, y * cos + x * sin, rest])
                own = torch.zeros(end, dtype=torch.bool)
                own[i // 32 * 32 : (i // 32 + 2) * 32] = True
                counts = torch.full((end,), float(sample == 1)).double()
                if sample > 1:
                    counts[sample - 1 :: sample] = sample
                    counts[:4] = 1
                counts[own] = 1
                near = k[max(0, i - 31) : i + 1] @ q * D**-0.5
                far = k[:end] @ behind * D**-0.5 + counts.log().to(q.dtype)
                far = far.masked_fill(counts == 0, -torch.inf)
                p = torch.cat([far, near]).softmax(0)[:end] * own
                squares.append(p.square())
            pooled = reference.pooled(torch.stack(squares), pool)
            energy[h] += pooled[first:]
    return energy


def read(values: Tensor, row: Tensor, first: int, end: int, S: int) -> Tensor:
    """[H, W], of the layer."""
    n = torch.arange(first, end)
    lanes = LAYER * H + torch.arange(H)
    return values[row.long()[n // S], lanes[:, None], n % S]


def replayed(
    op: object, cache: Cache, query: Tensor, row: Tensor, first: int, pool: str, turn: Tensor,
    sample: int, interleaved: bool = False, heads: Tensor = STOCK,
) -> Tensor:  # fmt: skip
    values = torch.zeros_like(cache.values)
    scale = query.shape[-1] ** -0.5
    where = (cache.arena, LAYER, row, heads, first)
    op(query, *where, scale, pool, turn, interleaved, sample, values)
    return values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("S", "D", "G"), SHAPES)
def test_error_is_within_twice_that_of_torch(
    isa: str, dtype: torch.dtype, S: int, D: int, G: int
) -> None:
    cases = [(64, 33, 8, D // 2), (32, 96, 1, D // 4), (0, 45, 32, 0)]
    for pool, (first, W, sample, pairs) in zip(POOLS, cases, strict=True):
        cache, row, query, keys = prompt(dtype, S, D, G, first + W, W)
        turn = angles(pairs, W)
        values = replayed(ops.replay, cache, query, row, first, pool, turn, sample)
        actual = read(values, row, first, first + W, S)
        keys64 = [key.double() for key in keys]
        exact = dense(query.double(), keys64, first, pool, turn.double(), sample)
        of_torch = relative_error(dense(query, keys, first, pool, turn, sample), exact)
        assert relative_error(actual, exact) <= 2 * of_torch + 4 * torch.finfo(torch.float32).eps
        others = values.clone()
        n = torch.arange(first, first + W)
        lanes = LAYER * H + torch.arange(H)
        others[row.long()[n // S], lanes[:, None], n % S] = 0
        assert not others.any()


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_is_the_reference(isa: str, sample: int, interleaved: bool) -> None:
    first, W = 512, 300
    cache, row, query, _ = prompt(torch.float32, 32, 64, 3, first + W, W)
    arguments = (cache, query, row, first, "mean", angles(24), sample, interleaved)
    actual = replayed(ops.replay, *arguments)
    torch.testing.assert_close(actual, replayed(reference.replay, *arguments), rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_page_stream_gives_the_same_bits(isa: str, dtype: torch.dtype) -> None:
    S, first, W = 32, 32, 109
    cache, row, query, _ = prompt(dtype, S, 64, 3, first + W, W)
    values = replayed(ops.replay, cache, query, row, first, "mean", angles(32), 8)
    expected = read(values, row, first, first + W, S)
    stream, stream_row, heads = as_stream(cache, row, generator("stream", dtype))
    heads[..., HeadField.READ_ONLY] = heads[..., HeadField.STOCK_PAGES]
    arguments = (stream, query, stream_row, first, "mean", angles(32), 8, False, heads)
    values = replayed(ops.replay, *arguments)
    for head, record in enumerate(heads[LAYER]):
        slots = torch.arange(first, first + W)
        where = reference.slots_of(stream.arena, stream_row, record, slots)
        is_valued = slots >= record[HeadField.READ_ONLY] * S
        assert torch.equal(values[where], expected[head] * is_valued)
        values[where] = 0
    assert not values.any()


def test_turning_goes_behind_the_block(isa: str) -> None:
    """A query turned by d positions meets a key as the same query d positions later would."""
    base = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    for interleaved in (False, True):
        at = [reference.turned(base[0], angles(32, p), interleaved) for p in (7, 7 + 512)]
        turned = reference.turned(at[0], angles(32, 512), interleaved)
        torch.testing.assert_close(turned, at[1], rtol=1e-4, atol=1e-4)


def test_values_are_added(isa: str) -> None:
    """Layers that share K and V add to the same values."""
    cache, row, query, _ = prompt(torch.float32, 32, 64, 2, 96, 64)
    once = replayed(ops.replay, cache, query, row, 32, "mean", angles(32), 8)
    values = once.clone()
    scale = 64**-0.5
    where = (cache.arena, LAYER, row, STOCK, 32)
    ops.replay(query, *where, scale, "mean", angles(32), False, 8, values)
    assert torch.equal(values, 2 * once)


def test_no_queries(isa: str) -> None:
    cache, row, query, _ = prompt(torch.float32, 32, 64, 2, 64, 32)
    assert not replayed(ops.replay, cache, query[:0], row, 32, "mean", angles(32), 8).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(first=16), "first_position must be a multiple of 32, got 16"),
        (dict(sample=4), "sample must be 1, 8, 16 or 32, got 4"),
        (dict(turn=angles(33)), "turn must have at most D / 2 = 32 angles, got 33"),
        (dict(pool="sum"), "pool must be one of mean, max, min, got 'sum'"),
        (
            dict(row=torch.tensor([1], dtype=torch.int32)),
            "block_row must have 2 blocks for the 64 slots",
        ),
    ],
)
def test_mistakes(change: dict[str, object], message: str) -> None:
    cache, row, query, _ = prompt(torch.float32, 32, 64, 2, 64, 32)
    given: dict[str, object] = (
        dict(first=32, pool="mean", turn=angles(32), sample=8, row=row) | change
    )
    with pytest.raises(ValueError, match="replay: " + message.replace("(", r"\(")):
        replayed(ops.replay, cache, query, **given)  # type: ignore[arg-type]
