"""The tests of the CPU's `store`, on a GPU."""

from tests.cuda.test_store import *  # noqa: F403 those that it lists
