"""Instructions that work on each lane by itself: arithmetic, logic, comparisons, conversions.

An instruction is the name of a function here and modifiers; one that is not taken account of is
an error, never passed over.
"""

from collections.abc import Callable

import numpy as np

from tests.cuda.ptx.memory import Fault
from tests.cuda.ptx.parser import Instruction, Tuple, Unsupported
from tests.cuda.ptx.state import Handler, Warp, parts
from tests.cuda.ptx.values import Lanes, Values, decode, encode, is_float, width

# Say how to round (the one way we do), or that an approximation would do.
HARMLESS = {"rn", "approx", "full", "lo"}
SMALLEST_NORMAL = 2.0**-126


def _quotient(a: Values, b: Values) -> Values:
    if a.dtype == np.float64:
        return a / b
    whole = np.where(b == 0, 1, b)
    return np.where(b == 0, ~np.zeros_like(a), (a - np.fmod(a, whole)) // whole)


def _remainder(a: Values, b: Values) -> Values:
    return np.where(b == 0, a, np.fmod(a, np.where(b == 0, 1, b)))


FUNCTIONS: dict[str, Callable[..., Values]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "fma": lambda a, b, c: a * b + c,
    "mad": lambda a, b, c: a * b + c,
    "div": _quotient,
    "rem": _remainder,
    "min": np.fmin,
    "max": np.fmax,
    "abs": np.abs,
    "neg": np.negative,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "copysign": lambda sign, size: np.copysign(size, sign),
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


# Directed rounding: towards where, and which nearest values are on the wrong side.
DIRECTED: dict[str, tuple[float, Callable[[Values, Values], Lanes]]] = {
    "rm": (-np.inf, np.greater),
    "rp": (np.inf, np.less),
    "rz": (0.0, lambda nearest, exact: np.abs(nearest) > np.abs(exact)),
}


def directed(values: Values, mode: str) -> Values:
    """Round to a float by another rule than to the nearest."""
    towards, wrong = DIRECTED[mode]
    nearest = values.astype(np.float32)
    after = np.nextafter(nearest, np.float32(towards))
    return np.where(wrong(nearest.astype(np.float64), values), after, nearest)


def flushed(values: Values) -> Values:
    """Return values with the subnormal ones of float replaced by zeros (.ftz)."""
    return np.where(np.abs(values) < SMALLEST_NORMAL, np.copysign(0, values), values)


def check_modifiers(step: Instruction, *known: str) -> None:
    """Raise for what an instruction asks beyond what its handler does."""
    extra = set(step.modifiers) - set(step.kinds) - HARMLESS - set(known)
    if extra:
        raise Unsupported(f".{' .'.join(sorted(extra))}")


def elementwise(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """d = f(a, b, ...) for all but integer products."""
    kind = step.kinds[-1]
    if step.opcode in ("mul", "mad") and not is_float(kind):
        return integer_product(warp, step, lanes)
    check_modifiers(step, "ftz", *(DIRECTED if kind == "f32" else ()))
    inputs = [decode(warp.read(operand), kind) for operand in step.operands[1:]]
    if "ftz" in step.modifiers:
        inputs = [flushed(values) for values in inputs]
    result = FUNCTIONS[step.opcode](*inputs)
    for mode in set(step.modifiers) & set(DIRECTED):
        result = directed(result, mode)
    if "ftz" in step.modifiers:
        result = flushed(result)
    warp.write(step.operands[0], encode(result, kind), lanes)


def integer_product(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """d = a * b [+ c]: its lower half, its upper half, or all of it (.wide)."""
    check_modifiers(step, "hi", "wide")
    kind = step.kinds[-1]
    a, b = (decode(warp.read(operand), kind) for operand in step.operands[1:3])
    if "hi" in step.modifiers:
        exact = a.astype(object) * b.astype(object) >> width(kind)
        a, b = (exact % (1 << 64)).astype(np.uint64), np.ones_like(b, np.uint64)
    if "wide" in step.modifiers:
        kind = f"{kind[0]}{2 * width(kind)}"
    result = encode(a * b, kind)
    if step.opcode == "mad":
        result = encode(result + warp.read(step.operands[3]), "u" + kind[1:])
    warp.write(step.operands[0], result, lanes)


def shift(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """d = a << n or a >> n; shifting everything out is defined."""
    kind = step.kinds[-1]
    value = decode(warp.read(step.operands[1]), kind)
    amount = np.minimum(decode(warp.read(step.operands[2]), "u32"), 64).astype(value.dtype)
    shifted = np.left_shift if step.opcode == "shl" else np.right_shift
    warp.write(step.operands[0], encode(shifted(value, amount), kind), lanes)


def funnel_shift(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """d = 32 bits out of 64, b:a, shifted left (the upper ones) or right (the lower ones)."""
    low, high, amount = (decode(warp.read(operand), "u32") for operand in step.operands[1:])
    amount = amount & 31 if "wrap" in step.modifiers else np.minimum(amount, 32)
    both = high << np.uint64(32) | low
    result = (both << amount) >> np.uint64(32) if "l" in step.modifiers else both >> amount
    warp.write(step.operands[0], encode(result, "b32"), lanes)


COMPARISONS: dict[str, Callable[[Values, Values], Lanes]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


def compare(name: str, a: Values, b: Values) -> Lanes:
    """Compare as setp.<name> does: NaN is unlike all, but satisfies equ, neu, ltu, ..."""
    if a.dtype != np.float64:
        return COMPARISONS[name](a, b)
    nan: Lanes = np.isnan(a) | np.isnan(b)
    if name in ("num", "nan"):
        return nan if name == "nan" else ~nan
    holds = COMPARISONS[name[:2]](a, b)
    return holds | nan if name.endswith("u") else holds & ~nan


def set_predicate(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """p[|q] = a <=> b [and, or, xor c]; q is for the opposite comparison."""
    kind = step.kinds[-1]
    a, b = (decode(warp.read(operand), kind) for operand in step.operands[1:3])
    if a.ndim > 1:
        raise Unsupported(f"setp of {kind}")
    holds = compare(step.modifiers[0], a, b)
    for target, value in zip(parts(step.operands[0]), (holds, ~holds), strict=False):
        if len(step.operands) > 3:
            other = decode(warp.read(step.operands[3]), "pred")
            value = FUNCTIONS[step.modifiers[1]](value, other)
        warp.write(target, encode(value, "pred"), lanes)


def select(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """d = p ? a : b."""
    a, b, condition = (warp.read(operand) for operand in step.operands[1:])
    warp.write(step.operands[0], np.where(condition != 0, a, b), lanes)


def move(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """d = a; or joins {a, b, ...} into one register, or splits one, the lowest bits first."""
    target, source = step.operands
    bits = width(step.kinds[-1])
    if isinstance(source, Tuple):
        each = bits // len(source.parts)
        joined = np.zeros_like(warp.counter, np.uint64)
        for index, part in enumerate(source.parts):
            joined |= encode(warp.read(part), f"b{each}") << np.uint64(each * index)
        warp.write(target, joined, lanes)
        return
    value = warp.read(source)
    each = bits // len(parts(target))
    for index, part in enumerate(parts(target)):
        piece = value >> np.uint64(each * index)
        warp.write(part, encode(piece, f"b{each}") if each > 1 else piece, lanes)


ROUNDING = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def convert(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """d = a in another type; two floats into a packed one, the first on top."""
    check_modifiers(step, "ftz", *ROUNDING, *(("sat",) if step.kinds[0] == "f32" else ()))
    to, source = step.kinds
    values = [decode(warp.read(operand), source) for operand in step.operands[1:]]
    if "ftz" in step.modifiers:
        values = [flushed(v) for v in values]
    value = np.stack(values[::-1]) if len(values) > 1 else values[0]
    for name in set(step.modifiers) & set(ROUNDING):
        value = ROUNDING[name](value)
    if "sat" in step.modifiers:
        value = np.fmax(np.fmin(value, 1), 0)
    if is_float(source) and not is_float(to):
        value = _saturated(value, to)
    warp.write(step.operands[0], encode(value, to), lanes)


def _saturated(value: Values, kind: str) -> Values:
    """Float to integer: too large is the largest, NaN is zero."""
    bits = width(kind)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if kind[0] == "s" else (0, 2**bits)
    dtype = np.int64 if kind[0] == "s" else np.uint64
    inside = np.where((value >= low) & (value < high), value, 0).astype(dtype)
    above = np.where(value >= high, dtype(high - 1), inside)
    return np.where(value < low, dtype(low), above)


def permute_bytes(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """prmt: each nibble of c names one byte of b:a, or its sign."""
    if len(step.modifiers) > 1:
        raise Unsupported("a mode of prmt")
    low, high, choice = (decode(warp.read(operand), "u32") for operand in step.operands[1:])
    both = high << np.uint64(32) | low
    result = np.zeros_like(both)
    for index in range(4):
        nibble = choice >> np.uint64(4 * index) & 15
        byte = both >> (nibble & 7) * 8 & 255
        sign = np.where(byte >= 128, np.uint64(255), np.uint64(0))
        result |= np.where(nibble & 8, sign, byte) << np.uint64(8 * index)
    warp.write(step.operands[0], result, lanes)


def logic(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """lop3: bit i of the table is the result where a, b, c are the bits of i."""
    a, b, c, table = (decode(warp.read(operand), "u32") for operand in step.operands[1:])
    result = np.zeros_like(a)
    for index in range(8):
        if int(table[0]) >> index & 1:
            terms = (v if index & bit else ~v for v, bit in ((a, 4), (b, 2), (c, 1)))
            result |= np.bitwise_and.reduce(list(terms))
    warp.write(step.operands[0], encode(result, "b32"), lanes)


def extract_bits(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """bfe: d = `length` bits of a from `start` on, extended by their sign for signed types."""
    kind = step.kinds[-1]
    value = decode(warp.read(step.operands[1]), "u" + kind[1:])
    start, length = (decode(warp.read(operand), "u8") for operand in step.operands[2:])
    if (start + length > width(kind)).any() or (length == 0).any():
        raise Unsupported("bfe beyond the width of its type")
    unused = 64 - length
    raw = (value >> start) << unused
    wide = raw.view(np.int64) >> unused.astype(np.int64) if kind[0] == "s" else raw >> unused
    warp.write(step.operands[0], encode(wide, kind), lanes)


def insert_bits(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """bfi: d = b with `length` bits from `start` on replaced by those of a."""
    kind = step.kinds[-1]
    a, b = (decode(warp.read(operand), kind) for operand in step.operands[1:3])
    start, length = (decode(warp.read(operand), "u8") for operand in step.operands[3:])
    hole = ((np.uint64(1) << length) - 1) << start
    warp.write(step.operands[0], encode(b & ~hole | a << start & hole, kind), lanes)


BIT_COUNTS: dict[str, Callable[[str], int]] = {
    "popc": lambda text: text.count("1"),
    "clz": lambda text: (text + "1").index("1"),
    "brev": lambda text: int(text[::-1], 2),
    "bfind": lambda text: len(text) - 1 - text.index("1") if "1" in text else 0xFFFFFFFF,
    "bfind.shiftamt": lambda text: text.index("1") if "1" in text else 0xFFFFFFFF,
}


def count_bits(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """Population count, leading zeros, reversal and the highest bit (of unsigned numbers)."""
    kind = step.kinds[-1]
    if kind[0] == "s":
        raise Unsupported("signed numbers here")
    form = ".".join([step.opcode, *(m for m in step.modifiers if m not in step.kinds)])
    texts = [f"{int(v):0{width(kind)}b}" for v in decode(warp.read(step.operands[1]), kind)]
    bits = np.array([BIT_COUNTS[form](text) for text in texts], np.uint64)
    warp.write(step.operands[0], bits, lanes)


def trap(warp: Warp, step: Instruction, lanes: Lanes) -> None:
    """End the launch: an assertion of the kernel failed."""
    raise Fault("trap")


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(FUNCTIONS, elementwise),
    "shl": shift,
    "shr": shift,
    "shf": funnel_shift,
    "setp": set_predicate,
    "selp": select,
    "mov": move,
    "cvt": convert,
    "prmt": permute_bytes,
    "lop3": logic,
    "bfe": extract_bits,
    "bfi": insert_bits,
    "popc": count_bits,
    "clz": count_bits,
    "brev": count_bits,
    "bfind": count_bits,
    "trap": trap,
}
