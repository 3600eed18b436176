"""Numbers in registers: a register holds 64 bits a lane, `decode` reads them as a PTX type.

Floats of up to 32 bits are computed with as float64 and rounded once, by `encode`: that is
correct rounding for sums, products, quotients and roots, and all but so for `fma`. The packed
types f16x2 and bf16x2 decode to [2, 32], the lower half first.
"""

import re
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

LANES = 32
Bits: TypeAlias = NDArray[np.uint64]  # [lanes] contents of a register
Lanes: TypeAlias = NDArray[np.bool_]  # [lanes] those that take part
Values: TypeAlias = NDArray[Any]  # [lanes] numbers; [2, lanes] of packed types

TYPE = re.compile(r"pred|bf16(x2)?|f16(x2)?|[fusb](8|16|32|64)")


def width(kind: str) -> int:
    """Return the bits of a type."""
    if kind == "pred":
        return 1
    return 32 if kind.endswith("x2") else int(kind.lstrip("usbf"))


def is_float(kind: str) -> bool:
    """Tell floating-point types, packed ones included, from integers and plain bits."""
    return kind[0] == "f" or kind.startswith("bf")


def decode(bits: Bits, kind: str) -> Values:
    """Read bits as numbers: float64, int64, uint64 or bool."""
    if kind.endswith("x2"):
        return np.stack([decode(bits, kind[:-2]), decode(bits >> np.uint64(16), kind[:-2])])
    if kind == "pred":
        return bits.astype(np.bool_)
    if kind == "bf16":
        return decode(bits << np.uint64(16), "f32")
    size = width(kind) // 8
    if kind[0] == "f":
        return bits.astype(f"u{size}").view(f"f{size}").astype(np.float64)
    if kind[0] == "s":
        return bits.astype(f"u{size}").view(f"i{size}").astype(np.int64)
    return bits.astype(f"u{size}").astype(np.uint64)


def encode(values: Values, kind: str) -> Bits:
    """Write numbers as bits; integers wrap, floats round to nearest even."""
    if kind.endswith("x2"):
        low, high = (encode(half, kind[:-2]) for half in values)
        return low | high << np.uint64(16)
    if kind == "pred":
        return values.astype(np.uint64)
    if kind == "bf16":
        bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & 1)) >> np.uint64(16)
        return np.where(np.isnan(values), np.uint64(0x7FFF), rounded)
    size = width(kind) // 8
    if kind[0] == "f":
        return values.astype(f"f{size}").view(f"u{size}").astype(np.uint64)
    return values.astype(np.uint64).astype(f"u{size}").astype(np.uint64)
