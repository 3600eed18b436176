"""Every CUDA kernel under the sanitizers: short buffers, misaligned loads, races."""

from pathlib import Path

import pytest
import torch

from fastgen_vllm.ops.layout import Layout
from tests.cuda import checks
from tests.cuda.build import Mode, Order
from tests.cuda.emulated import EmulatedOps


@pytest.fixture(params=[Mode.ADDRESS, Mode.THREAD])
def sanitized(request: pytest.FixtureRequest, built: Path) -> EmulatedOps:
    return EmulatedOps(built, request.param, Order.RANDOM, Layout.SLOTS_FIRST, seed=1)


@pytest.mark.parametrize(
    ("dtype", "D", "G"), [(torch.bfloat16, 64, 3), (torch.float16, 96, 9), (torch.float32, 256, 2)]
)
def test_decode_attention(sanitized: EmulatedOps, dtype: torch.dtype, D: int, G: int) -> None:
    checks.check_decode_attention(sanitized, dtype, D, G)


@pytest.mark.parametrize(
    ("dtype", "D", "G"), [(torch.bfloat16, 64, 3), (torch.float16, 96, 2), (torch.float32, 256, 1)]
)
def test_attention_mass(sanitized: EmulatedOps, dtype: torch.dtype, D: int, G: int) -> None:
    checks.check_attention_mass(sanitized, dtype, D, G)


@pytest.mark.parametrize(
    ("dtype", "D", "G"), [(torch.bfloat16, 64, 3), (torch.float16, 96, 2), (torch.float32, 256, 1)]
)
def test_replays(sanitized: EmulatedOps, dtype: torch.dtype, D: int, G: int) -> None:
    checks.check_replay(sanitized, dtype, D, G)
    checks.check_replayed_mass(sanitized, dtype, D, G)


def test_store(sanitized: EmulatedOps) -> None:
    checks.check_store(sanitized)


def test_compact(sanitized: EmulatedOps) -> None:
    checks.check_compact(sanitized)


def test_value_norm(sanitized: EmulatedOps) -> None:
    checks.check_value_norm(sanitized)
