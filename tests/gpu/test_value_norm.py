"""The tests of the CPU's `value_norm`, on a GPU."""

from tests.cuda.test_value_norm import *  # noqa: F403 those that it lists
