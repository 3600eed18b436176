"""The emulator computes what CUDA does, and its detectors detect: a table of seeded faults."""

import ctypes
from ctypes import c_float, c_int, c_uint, c_void_p
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cuda import toolkit
from tests.cuda.build import EmulatorError, Mode, Order, build, call

ROOT = Path(__file__).parents[2]
THREADS = 64
ORDERS = [(Order.FORWARD, 0), (Order.REVERSE, 0), (Order.RANDOM, 1), (Order.RANDOM, 2)]

NAN = "wrong results"
RACE = "ThreadSanitizer: data race"
OVERRUN = "AddressSanitizer: heap-buffer-overflow"

# Entry point of faults.cu, the mode that must find it, and what is said then.
FAULTS = [
    ("missing_syncwarp", Mode.THREAD, RACE),
    ("shuffle_for_syncwarp", Mode.THREAD, RACE),
    ("syncwarp_of_half", Mode.THREAD, RACE),
    ("syncwarp_for_barrier", Mode.THREAD, RACE),
    ("missing_second_barrier", Mode.THREAD, RACE),
    ("cross_block_race", Mode.THREAD, RACE),
    ("cross_block_race_at_barrier", Mode.THREAD, RACE),
    ("missing_fence", Mode.THREAD, RACE),
    ("divergent_barrier", Mode.PLAIN, r"__syncthreads at .*faults.cu:\d+"),
    ("two_barriers", Mode.PLAIN, "in two __syncthreads, at .* and at "),
    ("divergent_shuffle", Mode.PLAIN, "deadlock: .* in __shfl_xor_sync at .*faults.cu"),
    ("lane_outside_mask", Mode.PLAIN, "__ballot_sync at .* by lane .* outside of its mask"),
    ("shuffle_from_outside_mask", Mode.PLAIN, "__shfl_xor_sync reads lane .* outside of mask"),
    ("two_collectives", Mode.PLAIN, "are in __.* at .* and in __"),
    ("uninitialised_shared", Mode.PLAIN, NAN),
    ("static_overrun", Mode.ADDRESS, OVERRUN),
    ("dynamic_overrun", Mode.ADDRESS, OVERRUN),
    ("short_buffer", Mode.ADDRESS, OVERRUN),
    ("misaligned_load", Mode.ADDRESS, "misaligned address"),
    ("misaligned_copy", Mode.PLAIN, "copy_async<16> from a misaligned address"),
    ("copy_from_short_buffer", Mode.ADDRESS, OVERRUN),
    ("copy_beyond_shared", Mode.PLAIN, "an address that is not in shared memory"),
    ("copy_used_before_wait", Mode.PLAIN, NAN),
    ("wait_too_weak", Mode.PLAIN, NAN),
    ("copy_never_committed", Mode.PLAIN, "copies pending"),
    ("copy_pending_at_exit", Mode.PLAIN, "copies pending"),
    ("copy_of_other_thread", Mode.THREAD, RACE),
]


class Faults(ctypes.Structure):
    _fields_ = [("in_", c_void_p), ("out", c_void_p), ("counter", c_void_p), ("fixed", c_int)]


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("emulator")


def build_here(name: str, mode: Mode, directory: Path) -> Path:
    source = Path(__file__).with_name(name)
    return build(source, mode, [ROOT / "csrc", toolkit.find().include], directory)


@pytest.fixture(scope="session")
def runners(directory: Path) -> dict[Mode, Path]:
    return {mode: build_here("faults.cu", mode, directory) for mode in Mode}


@pytest.fixture(scope="session")
def collectives(directory: Path) -> Path:
    return build_here("collectives.cu", Mode.PLAIN, directory)


def run_fault(runner: Path, entry: str, fixed: bool, order: Order, seed: int) -> None:
    given = np.random.default_rng().standard_normal(THREADS + 4, np.float32)
    out = np.zeros(THREADS, np.float32)
    counter = np.zeros(1, np.int32)
    arguments = Faults(given.ctypes.data, out.ctypes.data, counter.ctypes.data, fixed)
    call(runner, entry, arguments, [given, out, counter], order, seed)
    if np.isnan(out).any():
        raise EmulatorError(NAN)


@pytest.mark.parametrize(("order", "seed"), ORDERS)
@pytest.mark.parametrize(("entry", "mode", "message"), FAULTS, ids=[f[0] for f in FAULTS])
def test_fault_is_found(
    runners: dict[Mode, Path], entry: str, mode: Mode, message: str, order: Order, seed: int
) -> None:
    with pytest.raises(EmulatorError, match=message):
        run_fault(runners[mode], entry, False, order, seed)
    run_fault(runners[mode], entry, True, order, seed)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("entry", [fault[0] for fault in FAULTS])
def test_repair_passes(runners: dict[Mode, Path], entry: str, mode: Mode) -> None:
    run_fault(runners[mode], entry, True, Order.RANDOM, 3)


def test_table_has_every_fault() -> None:
    source = Path(__file__).with_name("faults.cu").read_text()
    entries = [line[6:].split(",")[0] for line in source.splitlines() if line.startswith("ENTRY(")]
    assert entries == [entry for entry, _, _ in FAULTS]


# --- results --------------------------------------------------------------------------------------


class Shuffles(ctypes.Structure):
    _fields_ = [
        ("value", c_void_p),
        ("argument", c_void_p),
        ("result", c_void_p),
        ("width", c_int),
    ]


@pytest.mark.parametrize(("order", "seed"), ORDERS)
@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
def test_shuffles(collectives: Path, width: int, order: Order, seed: int) -> None:
    rng = np.random.default_rng()
    value = rng.integers(-1000, 1000, 32, np.int32)
    argument = rng.integers(0, 32, 32, np.int32)
    result = np.zeros((4, 32), np.int32)
    arguments = Shuffles(value.ctypes.data, argument.ctypes.data, result.ctypes.data, width)
    call(collectives, "shuffles", arguments, [value, argument, result], order, seed)

    for lane in range(32):
        first = lane // width * width
        a = int(argument[lane])
        idx = first + a % width
        up = lane - a if lane - a >= first else lane
        down = lane + a if lane + a < first + width else lane
        xor = lane ^ a if lane ^ a < first + width else lane
        assert result[:, lane].tolist() == [int(value[i]) for i in (idx, up, down, xor)], lane


class Votes(ctypes.Structure):
    _fields_ = [("value", c_void_p), ("result", c_void_p), ("mask", c_uint)]


@pytest.mark.parametrize(("order", "seed"), ORDERS)
@pytest.mark.parametrize("mask", [0xFFFFFFFF, 0x0000FFFF, 0x80000001, 0xAAAAAAAA, 0x00000001])
def test_votes_and_reductions(collectives: Path, mask: int, order: Order, seed: int) -> None:
    low = int(np.random.default_rng().integers(-50, 1))
    value = np.random.default_rng().integers(low, low + 51, 32, np.int32)
    result = np.zeros((6, 32), np.uint32)
    arguments = Votes(value.ctypes.data, result.ctypes.data, mask)
    call(collectives, "votes", arguments, [value, result], order, seed)

    for lane in range(32):
        mine = (mask >> lane) & 1
        lanes = [i for i in range(32) if (mask >> i) & 1 == mine]
        positive = [value[i] > 0 for i in lanes]
        values = [int(value[i]) for i in lanes]
        ballot = sum(1 << i for i in lanes if value[i] > 0)
        expected = [ballot, any(positive), all(positive), sum(values), min(values), max(values)]
        assert result[:, lane].tolist() == [int(x) % 2**32 for x in expected], lane


class Product(ctypes.Structure):
    _fields_ = [
        ("a", c_void_p),
        ("b", c_void_p),
        ("c", c_void_p),
        ("result", c_void_p),
        ("is_bf16", c_int),
    ]


@pytest.mark.parametrize(("order", "seed"), ORDERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matrix_product(collectives: Path, dtype: torch.dtype, order: Order, seed: int) -> None:
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype)
    c, result = torch.randn(16, 8), torch.full((16, 8), float("nan"))
    tensors = [a, b, c, result]
    arguments = Product(*(t.data_ptr() for t in tensors), dtype is torch.bfloat16)
    call(collectives, "product", arguments, tensors, order, seed)
    torch.testing.assert_close(result, (a.double() @ b.double() + c).float())


class Turns(ctypes.Structure):
    _fields_ = [
        ("result", c_void_p),
        ("next", c_void_p),
        ("sum", c_void_p),
        ("last", c_void_p),
    ]


def turns(runner: Path, order: Order, seed: int) -> list[int]:
    result, following, last = (np.zeros(n, np.int32) for n in (120, 1, 1))
    total = np.zeros(1, np.float32)
    arrays = [result, following, total, last]
    arguments = Turns(*(a.ctypes.data for a in arrays))
    call(runner, "turns", arguments, arrays, order, seed)
    assert (following[0], total[0], last[0]) == (120, 60, 119)
    return [int(x) for x in result]


def test_orders(collectives: Path) -> None:
    everyone = list(range(120))
    assert turns(collectives, Order.FORWARD, 0) == everyone
    assert turns(collectives, Order.REVERSE, 0) == everyone[::-1]
    first, again, other = (turns(collectives, Order.RANDOM, seed) for seed in (1, 1, 2))
    assert sorted(first) == sorted(other) == everyone
    assert first == again
    assert first != other and first != everyone


class Result(ctypes.Structure):
    _fields_ = [("result", c_void_p)]


@pytest.mark.parametrize(("order", "seed"), ORDERS)
def test_places(collectives: Path, order: Order, seed: int) -> None:
    result = np.zeros((4, 3, 2, 3, 2, 5, 6), np.int32)
    call(collectives, "places", Result(result.ctypes.data), [result], order, seed)
    for place in np.ndindex(result.shape[:-1]):
        assert result[place].tolist() == [*place[:2:-1], *place[2::-1]]


@pytest.mark.parametrize(("order", "seed"), ORDERS)
def test_half_of_a_warp_may_meet_while_the_other_waits(
    collectives: Path, order: Order, seed: int
) -> None:
    result = np.zeros(32, np.int32)
    call(collectives, "halves", Result(result.ctypes.data), [result], order, seed)
    assert (result == 16 + 16 * 16).all()


# --- launches -------------------------------------------------------------------------------------


class Configuration(ctypes.Structure):
    _fields_ = [(name, c_int) for name in ("grid", "block", "dynamic", "allowed", "variable")]


KIB = 1024
LEGAL = [(1, 1, 0, 0, 0), (7, 1024, 48 * KIB, 0, 0), (1, 32, 99 * KIB, 99 * KIB, 0)]
LEGAL += [(1, 32, 44 * KIB, 0, 1), (1, 32, 95 * KIB, 95 * KIB, 1)]
ILLEGAL = [
    ((0, 32, 0, 0, 0), "a dimension is 0"),
    ((1, 0, 0, 0, 0), "a dimension is 0"),
    ((1, 1025, 0, 0, 0), "the block is too large"),
    ((1, 32, 48 * KIB + 1, 0, 0), "more shared memory than 48 KiB"),
    ((1, 32, 64 * KIB + 1, 64 * KIB, 0), "more shared memory than .* was allowed"),
    ((1, 32, 64 * KIB, 99 * KIB + 1, 0), "configured returned 1"),
    ((1, 32, 44 * KIB + 1, 0, 1), "the limit is 49152"),
    ((1, 32, 95 * KIB + 1, 99 * KIB, 1), "the limit is 101376"),
]


@pytest.mark.parametrize("configuration", LEGAL)
def test_legal_launch(collectives: Path, configuration: tuple[int, ...]) -> None:
    call(collectives, "configured", Configuration(*configuration), [])


@pytest.mark.parametrize(("configuration", "message"), ILLEGAL)
def test_illegal_launch(collectives: Path, configuration: tuple[int, ...], message: str) -> None:
    with pytest.raises(EmulatorError, match=message):
        call(collectives, "configured", Configuration(*configuration), [])


@pytest.mark.slow
def test_more_threads_than_the_race_detector_has_place_for(directory: Path) -> None:
    runner = build_here("collectives.cu", Mode.THREAD, directory)
    call(runner, "configured", Configuration(9, 1024, 0, 0, 0), [])


def test_lost_error_of_a_launch(collectives: Path) -> None:
    with pytest.raises(EmulatorError, match="returned 0 though a launch failed"):
        call(collectives, "careless", Configuration(0, 32, 0, 0, 0), [])


# --- calls ----------------------------------------------------------------------------------------


class Inner(ctypes.Structure):
    _fields_ = [("count", c_float), ("result", c_void_p)]


class Outer(ctypes.Structure):
    _fields_ = [("result", c_void_p), ("inner", Inner * 2)]


def test_pointers_into_buffers(collectives: Path) -> None:
    """A pointer to the middle of a tensor's storage, others to nothing and to elsewhere."""
    storage = torch.zeros(100, dtype=torch.int32)
    inside = storage[50:82]
    unused = np.zeros(3)
    outer = Outer(inside.data_ptr())
    outer.inner[1].result = unused.ctypes.data + 8
    call(collectives, "halves", outer, [inside, storage, unused])
    assert (inside == 272).all() and int(storage.sum()) == 32 * 272

    with pytest.raises(ValueError, match=r"^inner\[1\]\.result points into none"):
        call(collectives, "halves", outer, [inside])


def test_buffers_that_overlap(collectives: Path) -> None:
    array = np.zeros(64, np.int32)
    with pytest.raises(ValueError, match="overlap"):
        call(collectives, "halves", Result(array.ctypes.data), [array[:40], array[20:]])


def test_crash_and_unknown_entry(collectives: Path) -> None:
    with pytest.raises(EmulatorError, match="killed by SIGSEGV"):
        call(collectives, "halves", Result(0), [])
    with pytest.raises(EmulatorError, match="no entry point is called halfs"):
        call(collectives, "halfs", Result(0), [])


def test_build_is_kept_until_a_file_changes(tmp_path: Path, directory: Path) -> None:
    source, header = tmp_path / "kernel.cu", tmp_path / "answer.h"
    source.write_text('#include "answer.h"\nextern "C" int answer(void*) { return ANSWER; }\n')
    include = [ROOT / "csrc", toolkit.find().include]
    header.write_text("#define ANSWER 0\n")
    runner = build(source, Mode.PLAIN, include, directory)
    made = runner.stat().st_mtime_ns
    call(runner, "answer", Result(0), [])
    assert build(source, Mode.PLAIN, include, directory) == runner
    assert runner.stat().st_mtime_ns == made

    header.write_text("#define ANSWER 3\n")
    build(source, Mode.PLAIN, include, directory)
    with pytest.raises(EmulatorError, match="answer returned 3"):
        call(runner, "answer", Result(0), [])

    header.write_text("#error no answer\n")
    with pytest.raises(RuntimeError, match="no answer"):
        build(source, Mode.PLAIN, include, directory)
