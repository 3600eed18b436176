"""The tests of the CPU's `compact`, on a GPU."""

from tests.cuda.test_compact import *  # noqa: F403 those that it lists
