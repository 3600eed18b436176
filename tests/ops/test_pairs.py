"""The ops on pages in pairs, vLLM's order for CPUs with AMX; any processor can run them."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fastgen_vllm import ops
from fastgen_vllm.geometry import StoreRule
from fastgen_vllm.ops import reference
from fastgen_vllm.ops.layout import from_pairs, to_pairs
from fastgen_vllm.pages import stock_records
from tests.ops import (
    test_attention_mass,
    test_compact,
    test_decode_attention,
    test_replay,
    test_replayed_mass,
    test_store,
    test_value_norm,
)
from tests.ops.cases import POOLS, SHAPES, generator, relative_error

DTYPE = torch.bfloat16
PAGES = [(S, D) for S, D, _ in SHAPES]


def in_pairs(op: Callable[..., None]) -> Callable[..., None]:
    """The op, run on a copy of each cache in pairs, with gaps between its blocks."""

    def run(*arguments: object) -> None:
        copies: dict[int, tuple[Tensor, Tensor]] = {}
        for each in arguments:
            if isinstance(each, Tensor) and each.dim() == 5:
                pairs = to_pairs(each)
                L, B, H = pairs.shape[:3]
                spaced = torch.full((B, L, H + 1, *pairs.shape[3:]), float("nan"), dtype=DTYPE)
                copy = spaced[:, :, 1:].transpose(0, 1)
                copy.copy_(pairs)
                copies[id(each)] = each, copy
        op(*(copies[id(a)][1] if id(a) in copies else a for a in arguments))
        for arena, copy in copies.values():
            arena.copy_(from_pairs(copy))

    return run


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="vLLM's library here knows no pairs"
)
@pytest.mark.parametrize(("S", "D"), PAGES)
def test_order_is_that_of_vllm(S: int, D: int) -> None:
    stock_ops = pytest.importorskip("vllm._custom_ops")

    rng = generator("vllm", S, D)
    B, H, T = 3, 2, 2 * S + 5
    arena = torch.randn(1, B, H, 2 * S, D, generator=rng).to(DTYPE)
    pairs = to_pairs(arena)
    assert torch.equal(from_pairs(pairs), arena)
    key, value = torch.randn(2, T, H, D, generator=rng).to(DTYPE)
    slots = torch.randperm(B * S, generator=rng)[:T]
    caches = pairs.view(B, H, 2 * S, D).chunk(2, dim=2)
    stock_ops.cpu_attn_reshape_and_cache(key, value, *caches, slots, "amx")
    found = from_pairs(pairs)
    for token, slot in enumerate(slots.tolist()):
        for head in range(H):
            k, v = reference.page_of(arena, 0, slot // S, head)
            k[:, slot % S], v[slot % S] = key[token, head], value[token, head]
    assert torch.equal(found, arena)


@pytest.mark.parametrize(("S", "D", "G"), SHAPES)
@pytest.mark.parametrize("pool", POOLS)
def test_attention_mass_errs_no_more_than_twice_as_much_as_torch(
    isa: str, S: int, D: int, G: int, pool: str
) -> None:
    for N, W in [(S + 1, S + 1), (300, 40), (2 * S - 1, 5), (1, 1)]:
        cache, row, query, keys = test_attention_mass.prompt(DTYPE, S, D, G, N, W)
        actual = torch.zeros(2, test_attention_mass.H, N + 3)
        in_pairs(ops.attention_mass)(
            query,
            cache.arena,
            1,
            row,
            test_attention_mass.STOCK,
            N - W,
            D**-0.5,
            pool,
            *actual.unbind(),
        )
        exact = test_attention_mass.dense_sums(
            query.double(), [k.double() for k in keys], D**-0.5, pool
        )
        theirs = test_attention_mass.dense_sums(query, keys, D**-0.5, pool)
        for ours, torchs, right in zip(actual, theirs, exact, strict=True):
            error = relative_error(ours[:, :N], right)
            assert error <= 2 * relative_error(torchs, right) + torch.finfo(torch.float32).eps
        assert not actual[..., N:].any()


@pytest.mark.parametrize(("S", "D", "G"), SHAPES)
def test_split_of_queries_gives_the_same_bits(isa: str, S: int, D: int, G: int) -> None:
    N, W, H = 3 * S + 5, 2 * S, test_attention_mass.H
    cache, row, query, _ = test_attention_mass.prompt(DTYPE, S, D, G, N, W)
    arena = to_pairs(cache.arena)
    sums = []
    for cuts in ([], [1], [7, 8, 31], [W // 2, W - 1]):
        sums.append(torch.zeros(2, H, N))
        for first, end in pairwise([0, *cuts, W]):
            part = query[first:end]
            ops.attention_mass(
                part,
                arena,
                1,
                row,
                test_attention_mass.STOCK,
                N - W + first,
                D**-0.5,
                "mean",
                *sums[-1].unbind(),
            )
    assert all(torch.equal(sums[0], other) for other in sums[1:])


@pytest.mark.parametrize(("S", "D", "G"), SHAPES)
def test_replays_err_no_more_than_twice_as_much_as_torch(
    isa: str, S: int, D: int, G: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("replay", "replayed_mass"):
        monkeypatch.setattr(ops, name, in_pairs(getattr(ops, name)))
    test_replay.test_error_is_within_twice_that_of_torch(isa, DTYPE, S, D, G)
    test_replayed_mass.test_error_is_within_twice_that_of_torch(isa, DTYPE, S, D, G)


@pytest.mark.parametrize(("S", "D"), PAGES)
def test_value_norm_errs_by_rounding(isa: str, S: int, D: int) -> None:
    for N in (1, S - 1, S, S + 1, 3 * S + 7):
        cache, row = test_value_norm.make_prompt(DTYPE, S, D, N)
        norm, expected = torch.full((2, test_value_norm.L, test_value_norm.H, N), float("nan"))
        in_pairs(ops.value_norm)(cache.arena, row, test_value_norm.STOCK, norm)
        reference.value_norm(cache.arena, row, test_value_norm.STOCK, expected)
        assert relative_error(norm, expected.double()) <= 2 * torch.finfo(torch.float32).eps


def test_page_streams_give_the_same_bits(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (test_attention_mass, test_replay, test_replayed_mass, test_value_norm):
        op = module.__name__.rpartition("test_")[2]
        monkeypatch.setattr(ops, op, in_pairs(getattr(ops, op)))
        module.test_a_page_stream_gives_the_same_bits(isa, DTYPE)


@pytest.mark.parametrize(("S", "D"), PAGES)
def test_kept_tokens_arrive_and_others_stay(
    isa: str, S: int, D: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "compact", in_pairs(ops.compact))
    test_compact.test_kept_tokens_arrive(isa, DTYPE, S, D)
    test_compact.test_a_page_stream_is_compacted_again(isa, DTYPE)


@pytest.mark.parametrize(("S", "D"), PAGES)
def test_overlapping_rows_give_what_disjoint_ones_give(
    isa: str, S: int, D: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "compact", in_pairs(ops.compact))
    test_compact.test_overlapping_rows_give_what_disjoint_ones_give(isa, DTYPE, S, D)


@pytest.mark.parametrize(("S", "D"), PAGES)
def test_stored_tokens_arrive_and_others_stay(
    isa: str, S: int, D: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "store", in_pairs(ops.store))
    test_store.test_several_requests_and_layers(isa, DTYPE, S, D, R=3)


@pytest.mark.parametrize(("S", "D", "G"), SHAPES)
def test_decode_errs_no_more_than_twice_as_much_as_torch(isa: str, S: int, D: int, G: int) -> None:
    for lengths in (test_decode_attention.ragged(S), [1023, 1024, 1025, 2500]):
        step = test_decode_attention.Step(lengths, DTYPE, S, D, G)
        output = step.run(op=in_pairs(ops.decode_attention))
        exact = step.dense(torch.float64)
        assert relative_error(output, exact) <= 2 * relative_error(step.dense(DTYPE), exact)


@pytest.mark.parametrize("rule", [StoreRule.BY_VALUE, StoreRule.BY_ENERGY])
@pytest.mark.parametrize("pool", POOLS)
def test_values_equal_those_of_columns(isa: str, rule: StoreRule, pool: str) -> None:
    """Pages in columns give the same scores, but for the order of their sums."""
    step = test_decode_attention.Step([1, 31, 700, 2500], DTYPE, 32, 64, 3, rule)
    values, expected = torch.zeros(2, *step.cache.values.shape)
    output = step.run(pool, values, in_pairs(ops.decode_attention))
    expected_output = step.run(pool, expected)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output, expected_output)


def test_pairs_are_of_bfloat16() -> None:
    arena, row = torch.zeros(1, 1, 1, 64, 16, 2), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="must be bfloat16 where pages are in pairs, got float32"):
        ops.value_norm(arena, row, stock_records(1, 1), torch.zeros(1, 1, 32))
    arena = torch.zeros(1, 1, 1, 64, 2, 16, dtype=DTYPE).transpose(4, 5)
    with pytest.raises(ValueError, match="contiguous in its last three"):
        ops.value_norm(arena, row, stock_records(1, 1), torch.zeros(1, 1, 32))
