"""Memory as separate buffers with gaps between them; whatever misses them is a Fault.

One Space is one state space of PTX: global memory for a whole launch, shared memory for a block,
parameters and local memory. Buffers are numpy arrays, used in place: what a kernel writes is in
the caller's array afterwards.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tests.cuda.ptx.values import Bits, Lanes, Values

GAP = 4096


class Fault(Exception):
    """What a kernel must not do, or what would hang or be undefined on a device."""


class Space:
    """Buffers by address."""

    def __init__(self, name: str = "global", first: int = 1 << 32) -> None:
        self.name = name
        self._next = first
        self._starts: list[int] = []
        self._buffers: list[NDArray[np.uint8]] = []

    def add(self, array: Values, align: int = 256) -> int:
        """Make an array's memory addressable and return its address."""
        if not array.flags.c_contiguous:
            raise ValueError("buffers must be contiguous: pass a copy, or a view of whole rows")
        start = -(-self._next // align) * align
        self._next = start + array.nbytes + GAP
        self._starts.append(start)
        self._buffers.append(array.reshape(-1).view(np.uint8))
        return start

    def load(self, addresses: Bits, size: int, count: int = 1) -> Bits:
        """Return [count][lanes] elements of `size` bytes, which follow each other."""
        found = np.empty((count, len(addresses)), np.uint64)
        for buffer, offsets, lanes in self._accesses(addresses, size * count):
            elements = buffer[: len(buffer) // size * size].view(f"u{size}")
            found[:, lanes] = elements[offsets // size + np.arange(count)[:, None]]
        return found

    def store(self, addresses: Bits, size: int, values: Bits) -> None:
        """Write [count][lanes] elements of `size` bytes; of two lanes the later one wins."""
        for buffer, offsets, lanes in self._accesses(addresses, size * len(values)):
            if not buffer.flags.writeable:
                raise Fault(f"write to a read-only {self.name} buffer")
            elements = buffer[: len(buffer) // size * size].view(f"u{size}")
            places = offsets // size + np.arange(len(values))[:, None]
            elements[places] = values[:, lanes].astype(f"u{size}")

    def _accesses(
        self, addresses: Bits, size: int
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64], Lanes]]:
        """Group lanes by buffer: (buffer, offsets in it, which lanes)."""
        places = addresses.astype(np.int64)
        if (places % size).any():
            raise Fault(
                f"{self.name} address {places[places % size > 0][0]:#x} is not a multiple of {size}"
            )
        owners = np.searchsorted(self._starts, places, side="right") - 1
        for owner in np.unique(owners):
            lanes = owners == owner
            offsets = places[lanes] - (self._starts[owner] if owner >= 0 else 0)
            limit = len(self._buffers[owner]) if owner >= 0 else 0
            outside = (offsets + size > limit) | (offsets < 0)
            if outside.any():
                raise Fault(
                    f"{self.name} access of {size} bytes out of bounds, at byte "
                    f"{offsets[outside][0]} of a buffer of {limit}"
                )
            yield self._buffers[owner], offsets, lanes
