from collections.abc import Iterator
from pathlib import Path

import pytest

from fastgen_vllm import ops
from fastgen_vllm.ops.layout import Layout
from tests.cuda.build import Mode, Order
from tests.cuda.emulated import EmulatedOps
from tests.cuda.structs import CALLS


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the CUDA kernels, built for the CPU."""
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture(
    params=[
        (Order.FORWARD, Layout.HEADS_FIRST),
        (Order.REVERSE, Layout.SLOTS_FIRST),
        (Order.RANDOM, Layout.HEADS_FIRST),
    ],
    ids=["forward", "reverse-slots-first", "random"],
)
def emulated(request: pytest.FixtureRequest, built: Path) -> EmulatedOps:
    """The CUDA ops, with threads in one of three orders and either layout of the cache."""
    order, layout = request.param
    return EmulatedOps(built, Mode.PLAIN, order, layout)


@pytest.fixture
def isa(emulated: EmulatedOps, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """In the place of the CPU's instruction sets: tests of tests/ops run on the CUDA ops here."""
    for op in CALLS:
        monkeypatch.setattr(ops, op, getattr(emulated, op))
    yield "cuda"
