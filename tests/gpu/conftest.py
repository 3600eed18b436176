from collections.abc import Iterator

import pytest

from fastgen_vllm import ops
from fastgen_vllm.ops.layout import Layout
from tests.gpu.device import KERNELS, DeviceOps, is_missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if (reason := is_missing()) is not None:
        for item in items:
            if "tests/gpu/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(
    params=[(Layout.HEADS_FIRST, False), (Layout.SLOTS_FIRST, False), (Layout.HEADS_FIRST, True)],
    ids=["heads-first", "slots-first", "graph"],
)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """In the place of the CPU's instruction sets: tests of tests/ops run on the GPU here."""
    layout, captured = request.param
    device = DeviceOps(layout, captured)
    for name in KERNELS:
        monkeypatch.setattr(ops, name, getattr(device, name))
    yield "gpu"
