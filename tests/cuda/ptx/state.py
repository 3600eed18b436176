"""A block and its warps while they run: registers, program counters and who waits for whom.

Each lane has its own program counter. A warp runs the lanes with the lowest one, so branches
reconverge by themselves. Lanes at an instruction that others must take part in wait for them, as
they would on a device since Volta; if all lanes wait, that is a Fault.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tests.cuda.ptx.memory import Fault, Space
from tests.cuda.ptx.parser import (
    Address,
    Immediate,
    Instruction,
    Kernel,
    Module,
    Operand,
    Register,
    Symbol,
    Tuple,
    Variable,
)
from tests.cuda.ptx.values import LANES, Bits, Lanes

Dim: TypeAlias = tuple[int, int, int]

LANE = np.arange(LANES)
# Generic addresses are those of a space plus where its window begins.
WINDOWS = {"global": 0, "const": 0, "shared": 1 << 44, "local": 2 << 44, "param": 3 << 44}


@dataclass
class Copy:
    """An asynchronous copy that has not landed."""

    lanes: Lanes
    group: NDArray[np.int64]  # [lanes] how many groups were committed before it
    addresses: Bits
    data: Bits  # [elements][lanes]
    size: int  # bytes of an element


@dataclass
class Block:
    """What the threads of a block share."""

    index: Dim
    grid: Dim
    shape: Dim
    memory: Space
    parameters: Space
    symbols: dict[str, int]
    shared: Space = field(default_factory=lambda: Space("shared", 0))
    local: Space = field(default_factory=lambda: Space("local", 0))

    def __post_init__(self) -> None:
        self.symbols = dict(self.symbols)
        self.spaces = {
            "global": self.memory,
            "const": self.memory,
            "shared": self.shared,
            "local": self.local,
            "param": self.parameters,
        }

    def lay_out_shared(self, module: Module, kernel: Kernel, dynamic_bytes: int) -> None:
        """Give shared memory its exact size, every byte 0xff: NaN in any float type."""
        for variable in (*kernel.shared, *module.shared):
            size = variable.size or dynamic_bytes
            contents = np.full(size, 0xFF, np.uint8)
            self.symbols[variable.name] = self.shared.add(contents, max(variable.align, 16))

    @property
    def num_threads(self) -> int:
        return int(np.prod(self.shape))


class Warp:
    """Up to 32 threads of a block."""

    def __init__(self, block: Block, index: int, local: list[Variable]) -> None:
        self.block, self.index = block, index
        self.steps = 0
        thread = index * LANES + LANE
        self.live: Lanes = thread < block.num_threads
        self.waiting = np.zeros(LANES, np.bool_)
        self.counter = np.zeros(LANES, np.int64)  # [lanes] each lane's next instruction
        self.copies: list[Copy] = []
        self.committed = np.zeros(LANES, np.int64)
        self._registers: dict[str, Bits] = _special(block, index, thread)
        self._local = {variable.name: self._lay_out(variable) for variable in local}

    def next_lanes(self) -> Lanes:
        """Return the lanes to run: those at the lowest instruction."""
        ready = self.live & ~self.waiting
        if not ready.any():
            raise Fault(f"lanes {_numbers(self.live)} wait for lanes that do not come")
        lowest: Lanes = self.live & (self.counter == self.counter[ready].min())
        return lowest

    def meet(self, here: Lanes, named: Bits) -> Lanes:
        """Return the lanes here for which all lanes they name are here; the others wait."""
        if ((named >> LANE.astype(np.uint64) & 1) == 0)[here].any():
            raise Fault("a lane is missing from its own mask")
        bits = sum(1 << int(lane) for lane in LANE[here])
        alive = sum(1 << int(lane) for lane in LANE[self.live])
        missing = named & np.uint64(alive & ~bits)
        ready: Lanes = here & (missing == 0)
        self.counter[here & ~ready] -= 1
        self.waiting[here] = ~ready[here]
        return ready

    def end(self, lanes: Lanes) -> None:
        """Let lanes exit; who waited for them looks again."""
        self.live = self.live & ~lanes
        self.waiting[:] = False
        for copy in self.copies:
            if (copy.lanes & lanes).any():
                raise Fault("exit before cp.async was waited for")

    def read(self, operand: Operand) -> Bits:
        """Return what an operand holds."""
        if isinstance(operand, Register):
            if operand.name not in self._registers:
                raise Fault(f"{operand.name} is read before it is written")
            bits = self._registers[operand.name]
            return bits ^ np.uint64(1) if operand.negated else bits
        if isinstance(operand, Immediate):
            return operand.bits
        if isinstance(operand, Symbol):
            if operand.name in self._local:
                return self._local[operand.name]
            if operand.name not in self.block.symbols:
                raise Fault(f"unknown name {operand.name}")
            return np.full(LANES, self.block.symbols[operand.name], np.uint64)
        if isinstance(operand, Address):
            return self.read(operand.base) + np.uint64(operand.offset % (1 << 64))
        raise Fault("one value expected, not several")

    def write(self, operand: Operand, bits: Bits, lanes: Lanes) -> None:
        """Set a register in some lanes; in the others it keeps what it has."""
        if not isinstance(operand, Register):
            raise Fault("the result needs a register")
        if operand.name == "_":
            return
        before = self._registers.get(operand.name)
        poison = np.uint64(0xFFFFFFFFFFFFFFFF) if before is None else before
        self._registers[operand.name] = np.where(lanes, bits, poison)

    def _lay_out(self, variable: Variable) -> Bits:
        """Give each lane its own copy of a variable in local memory."""
        buffers = [np.full(variable.size, 0xFF, np.uint8) for _ in LANE]
        return np.array([self.block.local.add(b, 16) for b in buffers], np.uint64)


def parts(operand: Operand) -> tuple[Operand, ...]:
    """Return the members of a vector, or a single operand as one of one."""
    return operand.parts if isinstance(operand, Tuple) else (operand,)


Handler: TypeAlias = Callable[[Warp, Instruction, Lanes], None]


def _special(block: Block, index: int, thread: NDArray[np.int64]) -> dict[str, Bits]:
    """Return the special registers of a warp."""
    x, y, _ = block.shape
    own = {"x": thread % x, "y": thread // x % y, "z": thread // (x * y)}
    found = {f"%tid.{axis}": values for axis, values in own.items()}
    for name, dims in (("ntid", block.shape), ("ctaid", block.index), ("nctaid", block.grid)):
        found |= {f"%{name}.{axis}": np.full(LANES, n) for axis, n in zip("xyz", dims, strict=True)}
    found["%laneid"] = LANE
    found["%warpid"] = np.full(LANES, index)
    below = (1 << LANE) - 1
    found |= {"%lanemask_lt": below, "%lanemask_eq": 1 << LANE, "%lanemask_le": below | 1 << LANE}
    found["%lanemask_gt"] = found["%lanemask_le"] ^ 0xFFFFFFFF
    found["%lanemask_ge"] = below ^ 0xFFFFFFFF
    return {name: values.astype(np.uint64) for name, values in found.items()}


def _numbers(lanes: Lanes) -> str:
    return ", ".join(str(lane) for lane in LANE[lanes])
