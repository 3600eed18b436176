"""The tests of the CPU's `store`, on the CUDA kernel, and what only that has."""

import torch

from fastgen_vllm.geometry import StoreRule
from tests.cuda.emulated import EmulatedOps
from tests.ops.cases import HeadPlan
from tests.ops.test_store import (
    Request,
    S,
    test_capped_head_fills_its_pages_first,
    test_full_head_grows_past_its_fixed_pages,
    test_least_value_per_query_goes,
    test_long_runs_equal_the_reference,
    test_of_equal_values_the_older_goes,
    test_oldest_goes_by_age,
    test_oldest_goes_when_all_are_protected,
    test_protected_class_stores_infinity,
    test_several_requests_and_layers,
    test_victim_in_a_page_that_the_head_grew_by,
    test_window_gives_way_before_protected_tokens,
    test_window_spares_recent_tokens,
)

__all__ = [
    "test_capped_head_fills_its_pages_first",
    "test_full_head_grows_past_its_fixed_pages",
    "test_least_value_per_query_goes",
    "test_long_runs_equal_the_reference",
    "test_of_equal_values_the_older_goes",
    "test_oldest_goes_by_age",
    "test_oldest_goes_when_all_are_protected",
    "test_protected_class_stores_infinity",
    "test_several_requests_and_layers",
    "test_victim_in_a_page_that_the_head_grew_by",
    "test_window_gives_way_before_protected_tokens",
    "test_window_spares_recent_tokens",
]


def test_lanes_of_nobody_are_left_alone(emulated: EmulatedOps) -> None:
    request = Request(HeadPlan(S, StoreRule.BY_AGE), HeadPlan(5))
    before, heads = request.cache.clone(), request.heads.clone()
    key, value = torch.randn(2, 1, 2, 32)
    one = torch.ones(1, dtype=torch.int32)
    emulated.store(
        key,
        value,
        torch.tensor([0]),
        -one,
        request.row,
        100 * one,
        0 * one,
        0,
        request.cache.arena,
        request.heads,
        request.cache.positions,
        request.cache.values,
    )
    assert torch.equal(request.heads, heads)
    assert torch.equal(request.cache.arena, before.arena)
    assert torch.equal(request.cache.positions, before.positions)
