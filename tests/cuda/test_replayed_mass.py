"""The tests of the CPU's `replayed_mass`, on the CUDA kernel."""

from tests.ops.test_replayed_mass import (
    test_a_page_stream_gives_the_same_bits,
    test_error_is_within_twice_that_of_torch,
    test_mass_and_what_is_near_are_all,
)

__all__ = [
    "test_a_page_stream_gives_the_same_bits",
    "test_error_is_within_twice_that_of_torch",
    "test_mass_and_what_is_near_are_all",
]
