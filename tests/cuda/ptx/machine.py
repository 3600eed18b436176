"""Launches a kernel: blocks one after the other, warps of a block in turns between barriers."""

import random
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from tests.cuda.ptx import arithmetic, collectives, transfers
from tests.cuda.ptx.memory import Fault, Space
from tests.cuda.ptx.parser import Instruction, Kernel, Module, Symbol, Unsupported, Variable
from tests.cuda.ptx.state import Block, Dim, Handler, Warp
from tests.cuda.ptx.values import LANES, Lanes, width

Argument: TypeAlias = int | float | bytes | np.generic | np.ndarray[Any, Any]
Barrier: TypeAlias = tuple[int, int]  # (which, threads that must arrive; 0: all)

HANDLERS: dict[str, Handler] = {
    **arithmetic.HANDLERS,
    **transfers.HANDLERS,
    **collectives.HANDLERS,
}
# Blocks and warps take turns, so memory is in order; time does not count.
NO_EFFECT = {"membar", "fence", "nanosleep", "prefetch"}


def launch(
    module: Module,
    kernel: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    shared_bytes: int = 0,
    arguments: Sequence[Argument] = (),
    *,
    memory: Space | None = None,
    order: int | None = None,
    max_steps: int = 2_000_000,
) -> int:
    """Run a kernel and return how many instructions its warps executed.

    An argument is a number, the bytes of a struct, or an array: its address is passed and the
    kernel works in it. Arrays that structs point to are added to a `memory` before:
    `memory.add(array)` is the address. `order` is a seed for the order of blocks and warps;
    without one they go by their numbers.
    """
    entry = module.kernel(kernel)
    memory = memory or Space()
    shape = _dim(block)
    if int(np.prod(shape)) > (entry.max_threads or 1024):
        raise Fault(f"{entry.name} is for {entry.max_threads or 1024} threads a block")
    parameters = Space("param", 256)
    symbols = _pass(entry, arguments, parameters, memory)
    for constant in module.constants:
        symbols[constant.name] = memory.add(_contents(constant))
    indices = [(x, y, z) for z, y, x in product(*map(range, _dim(grid)[::-1]))]
    shuffled = random.Random(order)
    if order is not None:
        shuffled.shuffle(indices)
    steps = 0
    with np.errstate(all="ignore"):
        for index in indices:
            threads = Block(index, _dim(grid), shape, memory, parameters, symbols)
            threads.lay_out_shared(module, entry, shared_bytes)
            steps += _run_block(threads, entry, None if order is None else shuffled, max_steps)
    return steps


def _dim(dims: tuple[int, ...]) -> Dim:
    x, y, z = (*dims, 1, 1)[:3]
    return x, y, z


def _pass(
    kernel: Kernel, arguments: Sequence[Argument], parameters: Space, memory: Space
) -> dict[str, int]:
    """Put arguments into parameter memory; return the parameters' addresses."""
    if len(arguments) != len(kernel.parameters):
        raise ValueError(f"{kernel.name} takes {len(kernel.parameters)} arguments")
    symbols = {}
    for parameter, argument in zip(kernel.parameters, arguments, strict=True):
        if isinstance(argument, np.ndarray):
            argument = memory.add(argument)
        data = _as_bytes(argument, parameter.size)
        if len(data) != parameter.size:
            raise ValueError(f"{parameter.name} has {parameter.size} bytes, not {len(data)}")
        symbols[parameter.name] = parameters.add(np.frombuffer(data, np.uint8))
    return symbols


def _as_bytes(argument: int | float | bytes | np.generic, size: int) -> bytes:
    if isinstance(argument, bytes):
        return argument
    if isinstance(argument, np.generic):
        return argument.tobytes()
    if isinstance(argument, float):
        return np.array(argument, f"f{size}").tobytes()
    return (argument % (1 << 8 * size)).to_bytes(size, "little")


def _contents(constant: Variable) -> np.ndarray[Any, Any]:
    """Return a constant's memory: the values it is initialised with, then zeros."""
    item = width(constant.kind) // 8
    elements = np.zeros(constant.size // item, f"u{item}")
    elements[: len(constant.values)] = [value % (1 << 8 * item) for value in constant.values]
    return elements


def _run_block(block: Block, kernel: Kernel, order: random.Random | None, max_steps: int) -> int:
    """Let all warps run to a barrier, then on, until they have ended."""
    warps = [Warp(block, i, kernel.local) for i in range(-(-block.num_threads // LANES))]
    runs = {warp: _run_warp(warp, kernel, max_steps) for warp in warps}
    arrived: dict[Warp, Barrier] = {}
    while runs:
        turns = [warp for warp in runs if warp not in arrived]
        if order:
            order.shuffle(turns)
        for warp in turns:
            barrier = next(runs[warp], None)
            if barrier is None:
                del runs[warp]
            else:
                arrived[warp] = barrier
        for barrier in set(arrived.values()):
            here = [warp for warp in arrived if arrived[warp] == barrier]
            if len(here) * LANES == barrier[1] or len(here) == len(runs):
                arrived = {warp: other for warp, other in arrived.items() if other != barrier}
        if runs and len(arrived) == len(runs):
            raise Fault(f"block {block.index}: warps wait at barriers {sorted(arrived.values())}")
    return sum(warp.steps for warp in warps)


def _run_warp(warp: Warp, kernel: Kernel, max_steps: int) -> Iterator[Barrier]:
    """Execute a warp's instructions, pausing at each barrier of its block."""
    while warp.live.any():
        here = warp.next_lanes()
        step = kernel.code[int(warp.counter[here][0])]
        warp.counter[here] += 1
        warp.steps += 1
        try:
            if warp.steps > max_steps:
                raise Fault(f"{max_steps} instructions without an end")
            barrier = _execute(warp, kernel, step, here)
        except (Fault, Unsupported, KeyError) as error:
            kind = type(error) if isinstance(error, Fault) else Unsupported
            place = f"{step} (block {warp.block.index}, warp {warp.index})"
            raise kind(f"{error.args[0]}, {place}") from error
        if barrier:
            yield barrier


def _execute(warp: Warp, kernel: Kernel, step: Instruction, here: Lanes) -> Barrier | None:
    """Execute one instruction in those of the lanes here whose guard holds."""
    lanes = here & (warp.read(step.guard) != 0) if step.guard else here
    if lanes.any() and step.opcode in collectives.NAMED:
        lanes = warp.meet(lanes, collectives.NAMED[step.opcode](warp, step))
    if not lanes.any() or step.opcode in NO_EFFECT:
        return None
    if step.opcode in ("bar", "barrier"):
        return _barrier(warp, step)
    if step.opcode in ("ret", "exit"):
        warp.end(lanes)
    elif step.opcode in ("bra", "brx"):
        _branch(warp, kernel, step, lanes)
    elif step.opcode in HANDLERS:
        HANDLERS[step.opcode](warp, step, lanes)
    else:
        raise Unsupported("unknown instruction")
    return None


def _barrier(warp: Warp, step: Instruction) -> Barrier | None:
    """Return the barrier that a warp has come to; bar.warp.sync is none of them."""
    if "warp" in step.modifiers:
        return None
    if "sync" not in step.modifiers:
        raise Unsupported("a form of barrier")
    which, *count = (int(warp.read(operand)[0]) for operand in step.operands)
    return which, count[0] if count else 0


def _branch(warp: Warp, kernel: Kernel, step: Instruction, lanes: Lanes) -> None:
    """bra label, or brx.idx index, list."""
    *index, target = step.operands
    assert isinstance(target, Symbol)
    if not index:
        warp.counter[lanes] = kernel.labels[target.name]
        return
    places = np.array([kernel.labels[name] for name in kernel.targets[target.name]])
    warp.counter[lanes] = places[warp.read(index[0])[lanes].astype(np.int64)]
