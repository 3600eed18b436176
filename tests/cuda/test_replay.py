"""The tests of the CPU's `replay`, on the CUDA kernel."""

from tests.ops.test_replay import (
    test_a_page_stream_gives_the_same_bits,
    test_error_is_within_twice_that_of_torch,
    test_is_the_reference,
    test_no_queries,
    test_values_are_added,
)

__all__ = [
    "test_a_page_stream_gives_the_same_bits",
    "test_error_is_within_twice_that_of_torch",
    "test_is_the_reference",
    "test_no_queries",
    "test_values_are_added",
]
