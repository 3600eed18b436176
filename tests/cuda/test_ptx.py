"""The interpreter against numpy, on what nvcc makes of ptx/snippets.cu for each architecture."""

import functools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.cuda import toolkit
from tests.cuda.ptx import Fault, Module, Space, Unsupported, launch, parse

SNIPPETS = Path(__file__).parent / "ptx/snippets.cu"
Array = NDArray[Any]
LANE = np.arange(32)
rng = np.random.default_rng()


@functools.cache
def compiled(architecture: int, *flags: str) -> Module:
    return parse(toolkit.find().ptx(SNIPPETS, architecture, *flags))


@pytest.fixture(params=toolkit.ARCHITECTURES)
def module(request: pytest.FixtureRequest) -> Module:
    return compiled(request.param)


@pytest.fixture
def faulty() -> Module:
    return compiled(80, "-DFAULTS")


def floats(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def as_type(values: Array, dtype: torch.dtype) -> tuple[Array, Array]:
    """Return the bits of values in a 16-bit type, and the values as rounded."""
    rounded = torch.from_numpy(values).to(dtype)
    return rounded.view(torch.int16).numpy(), rounded.float().numpy()


def scale_arguments(memory: Space, source: Array, target: Array, count: int) -> bytes:
    return struct.pack("<QQif", memory.add(source), memory.add(target), count, 2.5)


def test_loop_over_grid_with_struct(module: Module) -> None:
    source, target, memory = floats(1000), np.zeros(1000, np.float32), Space()
    launch(
        module,
        "scale",
        (3,),
        (64,),
        arguments=[scale_arguments(memory, source, target, 1000)],
        memory=memory,
    )
    assert np.array_equal(target, source * np.float32(2.5))


def test_divergent_loop(module: Module) -> None:
    start = rng.integers(1, 200, 48).astype(np.uint32)
    steps = np.zeros(48, np.int32)
    launch(module, "collatz", (1,), (48,), arguments=[start, steps])

    def count(value: int) -> int:
        return 0 if value == 1 else 1 + count(value // 2 if value % 2 == 0 else 3 * value + 1)

    assert steps.tolist() == [count(int(value)) for value in start]


def test_shuffles_and_votes(module: Module) -> None:
    values, sums = floats(32), np.zeros(48, np.float32)
    ranks = np.zeros((4, 32), np.int32)
    launch(module, "shuffles", (1,), (32,), arguments=[values, sums, ranks])
    np.testing.assert_allclose(sums[:32], values.sum(), rtol=1e-5, atol=1e-5)
    groups = values[:16].reshape(2, 8).sum(1).repeat(8)
    np.testing.assert_allclose(sums[32:], groups, rtol=1e-5, atol=1e-5)
    assert np.array_equal(ranks[0], LANE + 1)
    assert np.array_equal(ranks[1], np.cumsum(values > 0) - (values > 0))
    assert (ranks[2] == 31).all() and (ranks[3] == 2).all()


def block_sum(module: Module, order: int | None) -> tuple[Array, Array, Array]:
    values, sums, threads = floats(3, 128), np.zeros(3, np.float32), np.zeros(2, np.int32)
    launch(module, "block_sum", (3,), (128,), 512, arguments=[values, sums, threads], order=order)
    return values.sum(1), sums, threads


@pytest.mark.parametrize("order", [None, 1, 2])
def test_barriers_between_warps(module: Module, order: int | None) -> None:
    expected, sums, threads = block_sum(module, order)
    np.testing.assert_allclose(sums, expected, rtol=1e-4, atol=1e-4)
    assert threads.tolist() == [3 * 128, 127]


def pipeline(module: Module) -> tuple[Array, Array]:
    tiles, total = floats(5, 32, 4), np.zeros((32, 4), np.float32)
    launch(module, "pipeline", (1,), (32,), arguments=[tiles, total, 5])
    return tiles.sum(0)[LANE ^ 1], total


def test_copies_under_way(module: Module) -> None:
    expected, total = pipeline(module)
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-5)


def multiply(module: Module, name: str, dtype: torch.dtype) -> tuple[Array, Array]:
    a_bits, a = as_type(floats(16, 48), dtype)
    b_bits, b = as_type(floats(8, 48), dtype)
    c = np.zeros((16, 8), np.float32)
    launch(module, f"multiply<{name}>", (1,), (32,), arguments=[a_bits, b_bits, c, 48])
    return a @ b.T, c


TYPES = [("__half", torch.float16), ("__nv_bfloat16", torch.bfloat16)]


@pytest.mark.parametrize(("name", "dtype"), TYPES)
def test_tensor_cores(module: Module, name: str, dtype: torch.dtype) -> None:
    expected, c = multiply(module, name, dtype)
    np.testing.assert_allclose(c, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "dtype"), TYPES)
def test_vectors_of_16_bytes(module: Module, name: str, dtype: torch.dtype) -> None:
    bits, values = as_type(floats(32, 8) * 100, dtype)
    target = np.zeros_like(bits)
    launch(module, f"square<{name}>", (1,), (32,), arguments=[bits, target])
    assert np.array_equal(target, as_type(values * values, dtype)[0])


def test_packed_types(module: Module) -> None:
    halves, half = as_type(floats(32, 2), torch.float16)
    brains, brain = as_type(floats(32, 2), torch.bfloat16)
    to, to_b = np.zeros((2, 32, 2), np.int16), np.zeros((2, 32, 2), np.int16)
    launch(module, "packed", (1,), (32,), arguments=[halves, to, brains, to_b])
    counts = np.stack([LANE, -LANE], 1).astype(np.float32)
    products = half.astype(np.float64) ** 2 + 0.5
    assert np.array_equal(to[0].view(np.float16), products.astype(np.float16))
    assert np.array_equal(to_b[0], as_type(2 * brain, torch.bfloat16)[0])
    assert np.array_equal(to[1], as_type(counts, torch.float16)[0])
    assert np.array_equal(to_b[1], as_type(counts, torch.bfloat16)[0])


def test_functions(module: Module) -> None:
    x, results = floats(32) * 5, np.zeros((16, 32), np.float32)
    launch(module, "functions", (1,), (32,), arguments=[x, results])
    wide = x.astype(np.float64)
    expected = [
        np.exp2(wide), np.exp(wide), np.exp(wide), np.log(abs(wide)), np.sqrt(abs(wide)),
        wide / 3, np.maximum(wide, 0), wide, np.rint(wide), np.floor(wide),
        wide * wide + 1, 1 / abs(wide), wide / 3, 1 / wide, np.copysign(2, wide),
        np.zeros(32),
    ]  # fmt: skip
    np.testing.assert_allclose(results, expected, rtol=3e-6, atol=1e-6)


def test_integers(module: Module) -> None:
    a, b = (rng.integers(-(2**31), 2**31, 32).astype(np.int32) for _ in range(2))
    b[b == 0] = 1
    b[:8] = rng.integers(1, 100, 8)
    a[0] = 0
    results = np.zeros((26, 32), np.int64)
    launch(module, "integers", (1,), (32,), arguments=[a, b, results])
    for lane in range(32):
        assert results[:, lane].tolist() == integers(int(a[lane]), int(b[lane])), (a, b)


def integers(x: int, y: int) -> list[int]:
    """Say what C makes of the kernel's list."""

    def signed(value: int, bits: int = 32) -> int:
        return (value + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))

    def quotient(a: int, b: int) -> int:
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)

    ux, uy, wide = x % 2**32, y % 2**32, x * y
    shift = y & 31
    text = f"{ux:032b}"
    mixed = (uy << 32 | ux).to_bytes(8, "little")
    return [
        quotient(x, y), x - quotient(x, y) * y, ux // uy, ux % uy,
        wide, quotient(wide, 1000003), wide - quotient(wide, y) * y,
        wide >> 32, ux * uy >> 32, signed((wide % 2**64) * (~wide % 2**64) >> 64, 64),
        x >> shift, ux >> shift, (ux << shift) % 2**32,
        text.count("1"), (text + "1").index("1"), (text[::-1] + "1").index("1") + 1 if x else 0,
        int(text[::-1], 2), int.from_bytes([mixed[2], mixed[0], mixed[6], mixed[4]], "little"),
        ((uy << 32 | ux) << shift >> 32) % 2**32, (x & y) | (~x ^ y), min(x, y), max(ux, uy),
        signed(x, 8), y % 2**16, min(int(np.float32(x)), 2**31 - 1), signed(abs(x)),
    ]  # fmt: skip


def test_swapped_operands_give_another_product(faulty: Module) -> None:
    for name, dtype in TYPES:
        expected, c = multiply(faulty, name, dtype)
        assert np.abs(c - expected).max() > 0.1


def test_data_of_a_weak_wait_is_not_there(faulty: Module) -> None:
    assert np.isnan(pipeline(faulty)[1]).any()


def test_missing_barrier_shows_in_some_order(faulty: Module) -> None:
    results = [block_sum(faulty, order) for order in range(4)]
    assert any(not np.allclose(sums, expected) for expected, sums, _ in results)


def test_out_of_bounds(module: Module) -> None:
    source, target, memory = floats(100), np.zeros(100, np.float32), Space()
    arguments = [scale_arguments(memory, source, target, 101)]
    with pytest.raises(Fault, match=r"out of bounds, at byte 400 of a buffer of 400, line \d+"):
        launch(module, "scale", (1,), (32,), arguments=arguments, memory=memory)
    values, sums, threads = floats(128), np.zeros(1, np.float32), np.zeros(2, np.int32)
    with pytest.raises(Fault, match="shared access of 4 bytes out of bounds"):
        launch(module, "block_sum", (1,), (128,), 508, [values, sums, threads])


def test_read_only_buffer(module: Module) -> None:
    start, steps = np.ones(32, np.uint32), np.zeros(32, np.int32)
    steps.flags.writeable = False
    with pytest.raises(Fault, match="write to a read-only global buffer"):
        launch(module, "collatz", (1,), (32,), arguments=[start, steps])


def test_misaligned_vector(module: Module) -> None:
    source, target, memory = floats(132), np.zeros(32, np.float32), Space()
    address = memory.add(source)
    launch(module, "vector_load", (1,), (32,), arguments=[address, target], memory=memory)
    assert np.array_equal(target, source[:128].reshape(32, 4).cumsum(1)[:, 3])
    with pytest.raises(Fault, match="not a multiple of 16"):
        launch(module, "vector_load", (1,), (32,), arguments=[address + 4, target], memory=memory)


def test_lanes_that_never_meet(module: Module) -> None:
    with pytest.raises(Fault, match="wait for lanes that do not come"):
        launch(module, "never_meet", (1,), (32,), arguments=[floats(32)])


BY_HAND = """
.version 9.0
.target sm_80
.address_size 64
.const .align 4 .u32 table[3] = {7, 8};
.visible .entry by_hand(.param .u64 to)
{
  .reg .b64 %rd<4>;
  .reg .b32 %r<9>;
  .reg .pred %p<3>;
  ld.param.u64 %rd1, [to];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd1, %rd1, %rd2;
  setp.gt.u32 %p1, %r1, 3;
  @%p1 bra done;
  brx.idx %r1, list;
list: .branchtargets zero, one, one, two;
two:
  ld.const.u32 %r2, [table+4];
  bra store;
zero:
  ld.const.u32 %r2, [table];
  bra store;
one:
  {
    .reg .b32 low;
    mov.b32 low, 59;
    mov.b32 %r2, low;
  }
store:
  bar.warp.sync 15;
  st.global.u32 [%rd1], %r2;
done:
  %s
  ret;
}
"""


def test_indirect_branch_and_constants() -> None:
    to = np.zeros(4, np.int32)
    launch(parse(BY_HAND.replace("%s", "")), "by_hand", (1,), (32,), arguments=[to])
    assert to.tolist() == [7, 59, 59, 8]


def test_what_is_unknown_is_said() -> None:
    to = np.zeros(4, np.int32)
    for text in ("bmsk.clamp.b32 %r1, %r1, %r2;", "add.sat.s32 %r1, %r1, %r1;", "call f;"):
        module = parse(BY_HAND.replace("%s", text))
        with pytest.raises(Unsupported, match=rf"line \d+: {text[:5]}"):
            launch(module, "by_hand", (1,), (32,), arguments=[to])


def test_hanging_loop_ends() -> None:
    module = parse(BY_HAND.replace("%s", "bra done;"))
    with pytest.raises(Fault, match="1000 instructions without an end"):
        launch(module, "by_hand", (1,), (32,), arguments=[np.zeros(4, np.int32)], max_steps=1000)


def test_which_kernel(module: Module) -> None:
    with pytest.raises(KeyError, match="'multiply' is 2 of"):
        module.kernel("multiply")
    assert module.kernel("multiply<__half>").max_threads is None
