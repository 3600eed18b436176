"""The worker's side of a request's life, on a GPU and on the CPU."""

import pytest
import torch
from torch import Tensor

from tests.cuda.lives import Life, live
from tests.gpu.device import DEVICE


@pytest.mark.parametrize("preset", ["full", "paper", "balanced", "quarter"])
def test_a_request_lives_as_on_the_cpu(preset: str) -> None:
    """The same plan, outputs, and positions in the end; sums in another order."""
    expected = list(live(Life(preset, torch.device("cpu")), lambda: 0))
    actual = list(live(Life(preset, DEVICE), lambda: 0))
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        if isinstance(e, list) and e and isinstance(e[0], Tensor):
            assert isinstance(a, list)
            for ours, cpus in zip(a, e, strict=True):
                torch.testing.assert_close(ours.cpu(), cpus, rtol=1e-4, atol=1e-5)
        else:
            assert a == e
