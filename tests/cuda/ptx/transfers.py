"""Instructions that touch memory: loads, stores, atomics, address spaces, asynchronous copies."""

from collections.abc import Callable, Iterator

import numpy as np

from tests.cuda.ptx.memory import Space
from tests.cuda.ptx.parser import Instruction, Operand, Unsupported
from tests.cuda.ptx.state import WINDOWS, Copy, Handler, Warp, parts
from tests.cuda.ptx.values import LANES, Bits, Lanes, Values, decode, encode, width


def load(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """d = [a], or {d, e, ...} = [a] of neighbours."""
    targets = parts(step.operands[0])
    kind = step.kinds[-1]
    found = np.zeros((len(targets), LANES), np.uint64)
    for space, addresses, which in _places(warp, step, step.operands[1], lanes):
        found[:, which] = space.load(addresses, width(kind) // 8, len(targets))
    for target, bits in zip(targets, found, strict=True):
        extended = decode(bits, kind).astype(np.uint64) if kind[0] == "s" else bits
        warp.write(target, extended, lanes)


def store(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """[a] = b, or [a] = {b, c, ...}."""
    values = np.stack([warp.read(part) for part in parts(step.operands[1])])
    for space, addresses, which in _places(warp, step, step.operands[0], lanes):
        space.store(addresses, width(step.kinds[-1]) // 8, values[:, which])


def to_space(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """cvta: a generic address from one in a space, or back (.to)."""
    window = np.uint64(WINDOWS[_space(step) or "global"])
    value = warp.read(step.operands[1])
    moved = value - window if "to" in step.modifiers else value + window
    warp.write(step.operands[0], moved, lanes)


ATOMICS: dict[str, Callable[..., Values]] = {
    "add": lambda old, b: old + b,
    "min": np.fmin,
    "max": np.fmax,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, b: b,
    "cas": lambda old, b, c: np.where(old == b, c, old),
    "inc": lambda old, b: np.where(old >= b, 0, old + 1),
    "dec": lambda old, b: np.where((old == 0) | (old > b), b, old - 1),
}


def atomic(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """d = [a], [a] = f(d, b, ...); `red` is without d. Lanes go one after the other."""
    kind, size = step.kinds[-1], width(step.kinds[-1]) // 8
    names = [modifier for modifier in step.modifiers if modifier in ATOMICS]
    if len(names) != 1:
        raise Unsupported("an atomic operation")
    place, *others = step.operands[1:] if step.opcode == "atom" else step.operands
    inputs = [warp.read(operand) for operand in others]
    before = np.zeros(LANES, np.uint64)
    for space, addresses, which in _places(warp, step, place, lanes):
        for address, lane in zip(addresses, np.flatnonzero(which), strict=True):
            at = np.array([address])
            before[lane] = space.load(at, size)[0, 0]
            numbers = [decode(bits[lane : lane + 1], kind) for bits in (before, *inputs)]
            space.store(at, size, encode(ATOMICS[names[0]](*numbers), kind)[None])
    if step.opcode == "atom":
        warp.write(step.operands[0], before, lanes)


def copy_async(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """cp.async: reads now; what was in shared memory is lost, what comes waits for a wait."""
    form = step.modifiers[1]
    if form == "commit_group":
        warp.committed[lanes] += 1
    elif form in ("wait_group", "wait_all"):
        later = int(warp.read(step.operands[0])[0]) if step.operands else 0
        _land(warp, lanes, warp.committed - later if step.operands else warp.committed + 1)
    elif form in ("ca", "cg") and len(step.operands) in (3, 4):
        _start_copy(warp, step, lanes)
    else:
        raise Unsupported("a form of cp.async")


def _start_copy(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    target, source = (warp.read(operand) for operand in step.operands[:2])
    num_bytes = int(warp.read(step.operands[2])[0])
    size = min(num_bytes, 8)
    count = num_bytes // size
    data = np.zeros((count, LANES), np.uint64)
    # The fourth operand says how many bytes to read; the rest of the target becomes zeros.
    given = warp.read(step.operands[-1]) if len(step.operands) == 4 else np.full(LANES, num_bytes)
    if np.isin(given[lanes], (0, num_bytes), invert=True).any():
        raise Unsupported("cp.async of a part of its size")
    reads = lanes & (given > 0)
    data[:, reads] = warp.block.memory.load(source[reads], size, count)
    lost = np.full((count, int(lanes.sum())), 2**64 - 1, np.uint64)
    warp.block.shared.store(target[lanes], size, lost)
    warp.copies.append(Copy(lanes.copy(), warp.committed.copy(), target, data, size))


def _land(warp: Warp, lanes: Lanes, before: Values) -> None:
    """Let the copies of some lanes arrive, of groups committed before a number of them."""
    for copy in warp.copies:
        landing = copy.lanes & lanes & (copy.group < before)
        warp.block.shared.store(copy.addresses[landing], copy.size, copy.data[:, landing])
        copy.lanes &= ~landing
    warp.copies = [copy for copy in warp.copies if copy.lanes.any()]


def _space(step: Instruction) -> str | None:
    """Return the state space an instruction names, if any."""
    names = (modifier.partition("::")[0] for modifier in step.modifiers)
    return next((name for name in names if name in WINDOWS), None)


def _places(
    warp: Warp, step: Instruction, operand: Operand, lanes: Lanes
) -> Iterator[tuple[Space, Bits, Lanes]]:
    """Sort lanes by space: (space, addresses in it, which lanes)."""
    addresses = warp.read(operand)
    named = _space(step)
    if named:
        yield warp.block.spaces[named], addresses[lanes], lanes
        return
    windows = addresses >> np.uint64(44)
    for window in np.unique(windows[lanes]):
        which = lanes & (windows == window)
        start = int(window) << 44
        name = next((name for name, first in WINDOWS.items() if first == start), "global")
        yield warp.block.spaces[name], addresses[which] - np.uint64(start), which


HANDLERS: dict[str, Handler] = {
    "ld": load,
    "ldu": load,
    "st": store,
    "cvta": to_space,
    "atom": atomic,
    "red": atomic,
    "cp": copy_async,
}
