"""The worker's state lives on the device: no tensor of the CPU among them, no waiting in a step."""

import pytest
import torch
from torch import Tensor

from fastgen_vllm import ops
from tests.cuda.elsewhere import DEVICE, here, pretended_gpu
from tests.cuda.lives import Life, live
from tests.ops.layouts import OPS, relaid


@pytest.mark.parametrize("preset", ["full", "paper", "balanced", "quarter"])
def test_state_on_the_device_equals_the_cpus(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(live(Life(preset, torch.device("cpu")), lambda: 0))
    for name in OPS:
        monkeypatch.setattr(ops, name, here(relaid(getattr(ops, name))))
    with pretended_gpu() as gpu:
        actual = list(live(Life(preset, DEVICE), lambda: gpu.reads))
        assert gpu.reads > 0, "choosing reads what it chose"
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        if isinstance(e, list) and e and isinstance(e[0], Tensor):
            assert all(torch.equal(x.local, y) for x, y in zip(a, e, strict=True))  # type: ignore[call-overload]
        else:
            assert a == e


def test_mixing_devices_is_seen() -> None:
    with pretended_gpu():
        there = torch.ones(3, device=DEVICE)
        with pytest.raises(AssertionError, match="mixes"):
            there + torch.ones(3)
        with pytest.raises(AssertionError, match="mixes"):
            there[torch.tensor([0])]


def test_reads_are_counted() -> None:
    with pretended_gpu() as gpu:
        there = torch.arange(6, device=DEVICE)
        assert there.device == DEVICE and gpu.reads == 0
        there[there > 2]
        int(there.sum())
        there.tolist()
        there.nonzero()
        assert gpu.reads == 4
