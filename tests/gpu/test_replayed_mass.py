"""The tests of the CPU's `replayed_mass`, on a GPU."""

from tests.cuda.test_replayed_mass import *  # noqa: F403 those that it lists
