"""Every CUDA kernel as nvcc compiles it, run by the interpreter of PTX."""

from pathlib import Path

import pytest
import torch

from tests.cuda import checks, toolkit
from tests.cuda.interpreted import InterpretedOps


@pytest.fixture(params=toolkit.ARCHITECTURES)
def interpreted(request: pytest.FixtureRequest, tmp_path: Path) -> InterpretedOps:
    return InterpretedOps(tmp_path, architecture=request.param, seed=3)


@pytest.mark.parametrize(("dtype", "D", "G"), [(torch.bfloat16, 64, 3), (torch.float16, 128, 2)])
def test_decode_attention(interpreted: InterpretedOps, dtype: torch.dtype, D: int, G: int) -> None:
    checks.check_decode_attention(interpreted, dtype, D, G, (1, 33, 50, 31))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_mass(interpreted: InterpretedOps, dtype: torch.dtype) -> None:
    checks.check_attention_mass(interpreted, dtype, 64, 2, N=70, W=21)


def test_replay(interpreted: InterpretedOps) -> None:
    checks.check_replay(interpreted, torch.bfloat16, 64, 2, first=32, W=45)


def test_store(interpreted: InterpretedOps) -> None:
    checks.check_store(interpreted)


def test_compact(interpreted: InterpretedOps) -> None:
    checks.check_compact(interpreted)


def test_value_norm(interpreted: InterpretedOps) -> None:
    checks.check_value_norm(interpreted)
