"""The tests of the CPU's `attention_mass`, on a GPU."""

from tests.cuda.test_attention_mass import *  # noqa: F403 those that it lists
