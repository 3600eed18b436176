"""Build kernels for the CPU, with the emulator in `emulator/`, and call their entry points.

A kernel file becomes a program, the runner, that makes one call: sanitizers cannot be loaded into
Python, and whatever ends a call badly ends a process of its own.
"""

import ctypes
import hashlib
import os
import signal
import struct
import subprocess
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    import numpy as np
    import torch

    Buffer: TypeAlias = np.ndarray[Any, Any] | torch.Tensor

EMULATOR = Path(__file__).parent / "emulator"


class Mode(StrEnum):
    """What is looked for beside wrong results and calls that the emulator refuses."""

    PLAIN = "plain"
    ADDRESS = "address"  # accesses outside of buffers, misaligned ones, undefined behaviour
    THREAD = "thread"  # races


class Order(StrEnum):
    """In which order blocks run, and the threads of a block between two waits."""

    FORWARD = "forward"
    REVERSE = "reverse"
    RANDOM = "random"  # by a seed


class EmulatorError(Exception):
    """A kernel did what it must not do; the message is what the runner wrote to stderr."""


SANITIZERS = {
    Mode.PLAIN: [],
    Mode.ADDRESS: ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    Mode.THREAD: ["-fsanitize=thread"],
}
COMPILER = ["g++", "-std=c++20", "-g", "-fno-omit-frame-pointer"]
# nvcc knows no aliasing by type, and the unrolling of loops is nothing to warn of.
KERNEL = ["-O1", "-fno-strict-aliasing", "-Wno-unknown-pragmas", "-x", "c++"]


def build(
    source: Path, mode: Mode, include: Sequence[Path], directory: Path, defines: Sequence[str] = ()
) -> Path:
    """Make the runner of a kernel file, in `directory`, unless it is there and up to date.

    :param include: Where to look for headers, among them NVIDIA's.
    :param defines: Macros, as ``NAME`` or ``NAME=VALUE``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    headers = [f"-I{path}" for path in (EMULATOR, *include)]
    macros = [f"-D{define}" for define in defines]
    kernel = [*COMPILER, *KERNEL, *SANITIZERS[mode], *macros, *headers, "-c", str(source)]
    objects = [_compile(kernel, directory)]
    for file in sorted(EMULATOR.glob("*.cpp")):
        # Without sanitizers, which it tells what they have to know.
        macro = f"-DFASTGEN_{mode.upper()}"
        objects.append(_compile([*COMPILER, "-O2", macro, *headers, "-c", str(file)], directory))

    runner = objects[0].with_suffix("")
    if not _newer(runner, objects):
        command = [*COMPILER, *SANITIZERS[mode], "-rdynamic", *map(str, objects), "-ldl"]
        _make(command, runner)
    return runner


def _compile(command: Sequence[str], directory: Path) -> Path:
    """Object made by a command that ends with its source."""
    digest = hashlib.sha256(" ".join(command).encode()).hexdigest()[:16]
    target = directory / f"{Path(command[-1]).stem}-{digest}.o"
    listing = target.with_suffix(".d")
    if not (listing.exists() and _newer(target, _listed(listing))):
        _make([*command, "-MD", "-MF", str(listing)], target)
    return target


def _listed(listing: Path) -> list[Path]:
    """Files that a rule of make depends on."""
    rule = listing.read_text().replace("\\\n", " ")
    return [Path(word) for word in rule.split(":", 1)[1].split()]


def _newer(target: Path, sources: Sequence[Path]) -> bool:
    if not target.exists():
        return False
    made = target.stat().st_mtime
    return all(source.exists() and source.stat().st_mtime < made for source in sources)


def _make(command: Sequence[str], target: Path) -> None:
    partial = target.with_suffix(f".{os.getpid()}.partial")
    result = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    partial.replace(target)


def call(
    runner: Path,
    entry: str,
    arguments: ctypes.Structure,
    buffers: Sequence["Buffer"],
    order: Order = Order.FORWARD,
    seed: int = 0,
    timeout: float = 120,
) -> int:
    """Call ``int entry(const Arguments*)``; the buffers change in place.

    The kernel gets a copy of each buffer: of a tensor's storage, of a whole numpy array. Pointers
    in `arguments`, fields of type `c_void_p`, are addresses in these buffers, or null.

    :return: How often the threads of a block met at a barrier, over all blocks.
    :raises EmulatorError: The entry point did not return 0, or a detector struck.
    """
    regions = sorted({region(buffer) for buffer in buffers})
    for (address, size), (next_address, _) in pairwise(regions):
        if address + size > next_address:
            raise ValueError("buffers overlap")
    content = bytes(arguments)
    placed = []
    for name, place in pointers(type(arguments)):
        (address,) = struct.unpack_from("Q", content, place)
        if address != 0:
            placed.append(struct.pack("3Q", place, *locate(name, address, regions)))

    sizes = struct.pack("3Q", len(content), len(placed), len(regions))
    request = [sizes, content, *placed]
    for address, size in regions:
        request += [struct.pack("Q", size), ctypes.string_at(address, size)]

    # vLLM's engines in this process have libraries preloaded; a sanitizer must come first.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    result = subprocess.run(
        [str(runner), entry, order, str(seed)],
        input=b"".join(request),
        capture_output=True,
        timeout=timeout,
        env=environment,
    )
    if result.returncode != 0:
        message = result.stderr.decode(errors="replace")
        if result.returncode < 0:
            message += f"killed by {signal.Signals(-result.returncode).name}"
        raise EmulatorError(message)

    at = 0
    for address, size in regions:
        ctypes.memmove(address, result.stdout[at : at + size], size)
        at += size
    (barriers,) = struct.unpack("Q", result.stdout[at:])
    return int(barriers)


def region(buffer: "Any") -> tuple[int, int]:
    """Address and size in bytes."""
    if hasattr(buffer, "untyped_storage"):
        storage = buffer.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    if not buffer.flags.c_contiguous:
        raise ValueError("a numpy array must be contiguous; a tensor need not be")
    return buffer.ctypes.data, buffer.nbytes


def pointers(kind: "Any", name: str = "", at: int = 0) -> Iterator[tuple[str, int]]:
    """Name and offset of each pointer in a type."""
    if kind is ctypes.c_void_p:
        yield name, at
    elif issubclass(kind, ctypes.Structure):
        for field, field_kind, *_ in kind._fields_:
            yield from pointers(field_kind, f"{name}.{field}", at + getattr(kind, field).offset)
    elif issubclass(kind, ctypes.Array):
        for i in range(kind._length_):
            step = ctypes.sizeof(kind._type_)
            yield from pointers(kind._type_, f"{name}[{i}]", at + i * step)


def locate(name: str, address: int, regions: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Which region an address is in, and how far into it."""
    for i, (start, size) in enumerate(regions):
        if start <= address < start + max(size, 1):
            return i, address - start
    raise ValueError(f"{name[1:]} points into none of the {len(regions)} buffers")
