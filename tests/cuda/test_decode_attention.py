"""The tests of the CPU's `decode_attention`, on the CUDA kernel, and what only that has."""

import pytest
import torch
from torch.nn.functional import pad

from fastgen_vllm.geometry import HeadField, StoreRule
from fastgen_vllm.ops import reference
from tests.cuda.emulated import EmulatedOps
from tests.ops.cases import DTYPES, POOLS, generator, relative_error
from tests.ops.test_decode_attention import (
    LAYER,
    H,
    Step,
    ragged,
    test_equals_reference_with_values,
    test_error_is_within_twice_that_of_torch,
    test_growth_pages_are_read,
    test_large_scores_do_not_overflow,
    test_long_heads_are_split_and_merged,
)

__all__ = [
    "test_equals_reference_with_values",
    "test_error_is_within_twice_that_of_torch",
    "test_growth_pages_are_read",
    "test_large_scores_do_not_overflow",
    "test_long_heads_are_split_and_merged",
]


@pytest.mark.parametrize("num_blocks", [1, 2, 7, 200])
@pytest.mark.parametrize("scored_pages", [0, 9, 1000])
def test_any_number_of_blocks_shares_the_work(
    emulated: EmulatedOps, num_blocks: int, scored_pages: int
) -> None:
    """Nine pages are some of the scores; the others are computed a second time."""
    step = Step([300, 1, 64, 33, 16, 190], torch.float32, 16, 64, 3, StoreRule.BY_VALUE)
    emulated.num_blocks, emulated.scored_pages = num_blocks, scored_pages
    values, expected = torch.zeros(2, *step.cache.values.shape)
    output = step.run("mean", values, emulated.decode_attention)
    expected_output = step.run("mean", expected, reference.decode_attention)
    torch.testing.assert_close(output, expected_output, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("G", [5, 8, 12])
def test_more_query_heads_than_one_read_serves(
    emulated: EmulatedOps, dtype: torch.dtype, G: int
) -> None:
    step = Step(ragged(16), dtype, 16, 96, G, StoreRule.BY_ENERGY)
    values, expected = torch.zeros(2, *step.cache.values.shape)
    output = step.run("max", values, emulated.decode_attention)
    step.run("max", expected, reference.decode_attention)
    exact = step.dense(torch.float64)
    assert relative_error(output, exact) <= 2 * relative_error(step.dense(dtype), exact)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pool", POOLS)
def test_lanes_of_nobody_are_left_alone(emulated: EmulatedOps, pool: str) -> None:
    step = Step([40, 7, 33, 64, 5, 1], torch.float32, 32, 64, 2, StoreRule.BY_VALUE)
    whole = step.run(pool, torch.zeros_like(step.cache.values), emulated.decode_attention)
    step.lanes[1] = -1
    values = torch.rand(step.cache.values.shape, generator=generator(pool))
    expected = values.clone()
    output = step.run(pool, values, emulated.decode_attention)
    here = step.token_index[[0, 2]]
    torch.testing.assert_close(output[here], whole[here], rtol=1e-5, atol=1e-6)
    assert not output[step.token_index[1]].any()
    step.token_index, step.lanes, step.rows = here, step.lanes[[0, 2]], step.rows[[0, 2]]
    step.run(pool, expected, reference.decode_attention)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


def test_the_same_step_gives_the_same_bits(emulated: EmulatedOps) -> None:
    step = Step([300, 1, 700, 64] * (H // 2), torch.bfloat16, 16, 128, 4)
    outputs = [step.run(op=emulated.decode_attention) for _ in range(2)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("num_blocks", [5, 1000])
@pytest.mark.parametrize("rule", [StoreRule.APPEND, StoreRule.BY_VALUE])
def test_a_wide_table_is_no_work(emulated: EmulatedOps, num_blocks: int, rule: StoreRule) -> None:
    """A table for 131,072 tokens: nothing is merged for slots that no head has."""
    emulated.num_blocks = num_blocks
    step = Step(ragged(16), torch.float32, 16, 32, 2, rule)
    narrow = step.run(op=emulated.decode_attention)
    barriers = emulated.barriers
    step.rows = pad(step.rows, (0, 131_072 // 16 - step.rows.shape[1]))
    assert torch.equal(step.run(op=emulated.decode_attention), narrow)
    assert emulated.barriers == barriers


@pytest.mark.parametrize("num_blocks", [5, 1000])
def test_values_of_long_heads(emulated: EmulatedOps, num_blocks: int) -> None:
    """Blocks that finish share a head's slots, or pass through them one share after the other."""
    emulated.num_blocks = num_blocks
    step = Step([5000, 2048, 2049], torch.float32, 16, 32, 1, StoreRule.BY_VALUE)
    values, expected = torch.zeros(2, *step.cache.values.shape)
    step.run("mean", values, emulated.decode_attention)
    step.run("mean", expected, reference.decode_attention)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


def test_a_replay_is_a_step_of_its_own(emulated: EmulatedOps) -> None:
    """In a graph the scratch of a longer step is there, with the launches of the capture."""
    emulated.scored_pages, emulated.keeps_scratch = 9, True
    step = Step([300, 1, 64, 33, 16, 190], torch.bfloat16, 16, 64, 3, StoreRule.BY_VALUE)
    step.run(op=emulated.decode_attention)
    for lengths in ([5, 1, 64, 1, 16, 2], [300, 1, 64, 33, 16, 190]):
        of_lanes = torch.tensor(lengths, dtype=torch.int32).view(-1, H)
        step.heads[step.lanes.long(), LAYER, :, HeadField.LENGTH] = of_lanes
        values, expected = torch.zeros(2, *step.cache.values.shape)
        output = step.run("mean", values, emulated.decode_attention)
        fresh = EmulatedOps(emulated.directory, order=emulated.order, layout=emulated.layout)
        fresh.scored_pages = 9
        assert torch.equal(output, step.run("mean", expected, fresh.decode_attention))
        assert torch.equal(values, expected)
