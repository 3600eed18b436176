"""The tests of the CPU's `decode_attention`, on a GPU."""

from tests.cuda.test_decode_attention import *  # noqa: F403 those that it lists
