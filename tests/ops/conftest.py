from collections.abc import Iterator

import pytest
import torch

from fastgen_vllm import ops


@pytest.fixture(params=["baseline", "avx2", "avx512", "avx512bf16", "amx"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test on each instruction set that this processor has."""
    best = ops.isa()
    try:
        torch.ops.fastgen.set_isa(request.param)
    except ValueError:
        pytest.skip(f"this processor does not run {request.param}")
    yield request.param
    torch.ops.fastgen.set_isa(best)
