"""Instructions that lanes of a warp execute together: shuffles, votes, reductions and mma.

`NAMED` says who must take part in each; the machine calls a handler with lanes that are all there.
"""

from collections.abc import Callable

import numpy as np

from tests.cuda.ptx.memory import Fault
from tests.cuda.ptx.parser import Instruction, Unsupported
from tests.cuda.ptx.state import LANE, Handler, Warp, parts
from tests.cuda.ptx.values import LANES, Bits, Lanes, Values, decode, encode

FULL = np.full(LANES, 0xFFFFFFFF, np.uint64)
NOTHING = np.uint64(0xFFFFFFFF)  # what comes from a lane that takes no part: NaN as a float


def shuffle(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """d[|p] = a of another lane; p tells whether there was one within the segment."""
    value, b, c = (decode(warp.read(operand), "u32") for operand in step.operands[1:4])
    by, clamp, segment = (x.astype(np.int64) for x in (b & 31, c & 31, c >> np.uint64(8) & 31))
    first = LANE & segment
    last = first | clamp & ~segment
    mode = step.modifiers[1]
    wanted = {
        "up": LANE - by,
        "down": LANE + by,
        "bfly": LANE ^ by,
        "idx": first | by & ~segment,
    }[mode]
    inside = wanted >= last if mode == "up" else wanted <= last
    source = np.where(inside, wanted, LANE)
    received = np.where(lanes[source], value[source], NOTHING)
    results = received, encode(inside, "pred")
    for target, bits in zip(parts(step.operands[0]), results, strict=False):
        warp.write(target, bits, lanes)


def vote(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """Join one predicate of each lane: .all, .any, .uni (all alike) or .ballot (a bit each)."""
    holds = decode(warp.read(step.operands[1]), "pred")
    for own in _groups(warp.read(step.operands[2]), lanes):
        mode = step.modifiers[1]
        result = {
            "all": holds[own].all(),
            "any": holds[own].any(),
            "uni": holds[own].all() or not holds[own].any(),
            "ballot": sum(1 << int(lane) for lane in LANE[own & holds]),
        }[mode]
        warp.write(step.operands[0], np.full(LANES, int(result), np.uint64), own)


REDUCTIONS: dict[str, Callable[[Values], Values]] = {
    "add": np.sum,
    "min": np.min,
    "max": np.max,
    "and": np.bitwise_and.reduce,
    "or": np.bitwise_or.reduce,
    "xor": np.bitwise_xor.reduce,
}


def reduce(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """redux: join one integer of each lane."""
    kind = step.kinds[-1]
    values = decode(warp.read(step.operands[1]), kind)
    for own in _groups(warp.read(step.operands[2]), lanes):
        result = np.asarray(REDUCTIONS[step.modifiers[1]](values[own]))
        warp.write(step.operands[0], np.full(LANES, encode(result, kind)), own)


def _groups(masks: Bits, lanes: Lanes) -> list[Lanes]:
    """Separate lanes that name different masks."""
    return [lanes & (masks == mask) for mask in np.unique(masks[lanes])]


def active_mask(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """Tell which lanes execute this together."""
    bits = sum(1 << int(lane) for lane in LANE[lanes])
    warp.write(step.operands[0], np.full(LANES, bits, np.uint64), lanes)


def multiply_matrices(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """mma.m16n8k16: D = A B + C, of [16, 16], [16, 8] and [16, 8] that the lanes hold together.

    Which elements a lane holds is in the PTX ISA under "Matrix Fragments for mma.m16n8k16 with
    floating point type": group = lane / 4, member = lane % 4, then for element i of a fragment
    as the functions below say.
    """
    if step.modifiers[2:5] != ("m16n8k16", "row", "col") or len(step.kinds) != 4:
        raise Unsupported("a shape or type of mma")
    if not lanes.all():
        raise Fault("mma needs all 32 lanes")
    to, of_a, of_b, of_c = step.kinds
    if not (to == of_c == "f32" and of_a == of_b and of_a in ("f16", "bf16")):
        raise Unsupported("types of mma")
    a = _gather(warp, step, 1, f"{of_a}x2", (16, 16))
    b = _gather(warp, step, 2, f"{of_b}x2", (16, 8))
    c = _gather(warp, step, 3, "f32", (16, 8))
    d = a @ b + c
    for i, target in enumerate(parts(step.operands[0])):
        warp.write(target, encode(d[PLACES[3](i)], "f32"), lanes)


GROUP, MEMBER = LANE // 4, LANE % 4
# (row, column) of element i, by operand: A, B, and C or D.
PLACES: dict[int, Callable[[int], tuple[Values, Values]]] = {
    1: lambda i: (
        GROUP + (0 if i < 2 or 4 <= i < 6 else 8),
        MEMBER * 2 + (i & 1) + (0 if i < 4 else 8),
    ),
    2: lambda i: (MEMBER * 2 + (i & 1) + (0 if i < 2 else 8), GROUP),
    3: lambda i: (GROUP + (0 if i < 2 else 8), MEMBER * 2 + (i & 1)),
}


def _gather(
    warp: Warp, step: Instruction, operand: int, kind: str, shape: tuple[int, int]
) -> Values:
    """Put together a matrix from the lanes' fragments."""
    registers = parts(step.operands[operand])
    fragment = np.concatenate([np.atleast_2d(decode(warp.read(r), kind)) for r in registers])
    if fragment.size != shape[0] * shape[1]:
        raise Fault(f"operand {operand} of mma has {len(registers)} registers")
    matrix = np.empty(shape)
    for i, element in enumerate(fragment):
        matrix[PLACES[operand](i)] = element
    return matrix


def meet_only(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """bar.warp.sync: meeting is all there is to it."""


def _last(warp: Warp, step: Instruction) -> Bits:
    return warp.read(step.operands[-1])


# Which lanes each lane waits for, as a mask.
NAMED: dict[str, Callable[[Warp, Instruction], Bits]] = {
    "shfl": _last,
    "vote": _last,
    "redux": _last,
    "bar": lambda warp, step: _last(warp, step) if "warp" in step.modifiers else FULL,
    "barrier": lambda warp, step: FULL,
    "mma": lambda warp, step: FULL,
}

HANDLERS: dict[str, Handler] = {
    "shfl": shuffle,
    "vote": vote,
    "redux": reduce,
    "activemask": active_mask,
    "mma": multiply_matrices,
}
