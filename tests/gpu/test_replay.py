"""The tests of the CPU's `replay`, on a GPU."""

from tests.cuda.test_replay import *  # noqa: F403 those that it lists
