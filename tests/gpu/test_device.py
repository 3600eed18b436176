"""What only a device has: its pages, streams, graphs, and more memory than 32 bits count."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgen_vllm.geometry import StoreRule
from fastgen_vllm.ops import reference
from fastgen_vllm.ops.layout import Layout
from tests.gpu.device import DEVICE, DRY, KERNELS, DeviceOps, run, side_stream, wait
from tests.ops.cases import DTYPES, relative_error
from tests.ops.test_decode_attention import LAYER, H, Step, ragged

REQUESTS = 2 if DRY else 64
REPEATS = 3 if DRY else 200
#: Elements of a pool whose last block 32 bits do not reach.
MANY = 2**20 if DRY else 2**33


class Placed:
    """A step of decoding on the device."""

    def __init__(self, step: Step, device: torch.device = DEVICE) -> None:
        ops = DeviceOps(device=device)
        self.scale = step.scale
        self.tensors: dict[str, Tensor] = {
            name: ops.moved(tensor)
            for name, tensor in dict(
                query=step.query,
                token_index=step.token_index,
                lanes=step.lanes,
                block_rows=step.rows,
                arena=step.cache.arena,
                heads=step.heads,
                values=torch.zeros_like(step.cache.values),
                output=torch.zeros_like(step.query),
            ).items()
        }

    def call(self, **changed: Tensor) -> None:
        """Attend; the values of the last call are forgotten."""
        t: dict[str, Any] = self.tensors | changed
        t["values"].zero_()
        t["output"].fill_(float("nan"))
        KERNELS["decode_attention"](
            *(t[name] for name in ("query", "token_index", "lanes", "block_rows")),
            LAYER,
            self.scale,
            "mean",
            *(t[name] for name in ("arena", "heads", "values", "output")),
        )

    def result(self) -> tuple[Tensor, Tensor]:
        """Output and values, on the host."""
        wait()
        index = self.tensors["token_index"].cpu()
        return self.tensors["output"].cpu()[index], self.tensors["values"].cpu()


def make_step() -> Step:
    """Ragged heads of many requests, which value their tokens."""
    lengths = [17 + 97 * i % 700 for i in range(REQUESTS * H)]
    return Step(lengths, torch.bfloat16, 16, 128, 4, StoreRule.BY_ENERGY)


@pytest.fixture(scope="module")
def step() -> Step:
    return make_step()


def same(results: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(results, others, strict=True))


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("G", [1, 4, 7, 8, 16])
@pytest.mark.parametrize("D", [64, 96, 128, 256])
def test_pages_of_16(layout: Layout, dtype: torch.dtype, G: int, D: int) -> None:
    step = Step(ragged(16), dtype, 16, D, G, StoreRule.BY_ENERGY)
    values, expected = torch.zeros(2, *step.cache.values.shape)
    output = step.run("mean", values, DeviceOps(layout).decode_attention)
    step.run("mean", expected, reference.decode_attention)
    exact = step.dense(torch.float64)
    assert relative_error(output, exact) <= 2 * relative_error(step.dense(dtype), exact)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)


def test_equal_calls_give_equal_bits(step: Step) -> None:
    placed = Placed(step)
    placed.call()
    first = placed.result()
    for _ in range(REPEATS):
        placed.call()
        assert same(placed.result(), first)


def test_replays_give_the_bits_of_calls(step: Step) -> None:
    placed = Placed(step)
    placed.call()
    first = placed.result()
    run(placed.call, captured=True)
    assert same(placed.result(), first)


def test_another_stream(step: Step) -> None:
    """It waits for what was put there before, and for nothing else."""
    placed = Placed(step)
    placed.call()
    first = placed.result()
    query = placed.tensors["query"].clone()
    placed.tensors["query"].zero_()
    wait()
    with side_stream():
        placed.tensors["query"].copy_(query)
        placed.call()
    assert same(placed.result(), first)


def test_a_pool_beyond_32_bits(step: Step) -> None:
    """The blocks of the step are the last ones of the pool."""
    placed = Placed(step)
    placed.call()
    output, values = placed.result()
    arena = placed.tensors["arena"]
    L, B, *page = arena.shape
    blocks = max(B + 1, MANY // arena[:, 0].numel())
    pool = torch.zeros((blocks, L, *page), dtype=arena.dtype, device=arena.device).transpose(0, 1)
    pool[:, -B:] = arena
    meta = torch.zeros((blocks, *values.shape[1:]), device=arena.device)
    rows = placed.tensors["block_rows"] + (blocks - B)
    placed.call(arena=pool, values=meta, block_rows=rows)
    at_the_end, _ = placed.result()
    assert pool.numel() > 2**32 or DRY
    assert torch.equal(at_the_end, output)
    assert torch.equal(meta[-B:].cpu(), values)


def test_a_second_device(step: Step) -> None:
    if DRY or torch.cuda.device_count() < 2:
        pytest.skip("there is one device")
    placed = Placed(step)
    placed.call()
    first = placed.result()
    other = Placed(step, torch.device("cuda", 1))
    other.call()
    torch.cuda.synchronize(1)
    assert same(other.result(), first)


CAPTURE_AT_ONCE = """
from tests.gpu.test_device import Placed, make_step, run, same
step = make_step()
captured, called = Placed(step), Placed(step)
run(captured.call, captured=True)
called.call()
assert same(captured.result(), called.result())
"""


def test_the_first_call_of_a_process_is_captured() -> None:
    """Kernels are loaded, and may be allowed more shared memory, within the capture."""
    done = subprocess.run([sys.executable, "-c", CAPTURE_AT_ONCE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
