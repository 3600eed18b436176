"""Compiles the CUDA kernels for every architecture and holds each to what limits.toml says.

No GPU is needed to see that a kernel spills, outgrew its registers or lost its wide loads: ptxas
says the first, the disassembly the last. `python -m tests.cuda.gate` checks csrc/cuda/*.cu.
"""

import argparse
import os
import re
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple, TypeAlias

from tests.cuda import toolkit

LIMITS = Path(__file__).with_name("limits.toml")
LOCAL_MEMORY = ("LDL", "STL")
STRICT = (
    *("-Werror", "all-warnings"),
    *("-Xptxas", "-v,-Werror,--warn-on-spills,--warn-on-local-memory-usage"),
)


@dataclass(frozen=True)
class Limit:
    """What kernels of some C++ names may use and must contain, on every architecture."""

    name: str  # pattern; the first entry that matches a kernel counts
    registers: int  # per thread
    shared: int  # static shared memory, bytes per block
    instructions: tuple[str, ...] = ()  # such as LDG.128: each at least once


class Usage(NamedTuple):
    """What ptxas says that a kernel takes; bytes, but for registers."""

    registers: int
    shared: int
    stack: int
    spills: int


class Compiled(NamedTuple):
    """A kernel as compiled for one architecture, such as sm_90."""

    name: str
    architecture: str
    usage: Usage
    opcodes: frozenset[str]


Key: TypeAlias = tuple[str, str]  # mangled name, architecture


def parse_usage(log: str) -> dict[Key, Usage]:
    """Read what `ptxas -v` printed."""
    entry = r"Compiling entry function '(\S+)' for '(\w+)'"
    found = {}
    for part in re.split(rf"(?={entry})", log):
        if not (key := re.match(entry, part)):
            continue
        name, architecture = key.groups()
        memory = rf"properties for {re.escape(name)}\n\s*(\d+) bytes stack frame, (\d+) bytes spill"
        registers, shared, stack, spills = (
            re.search(pattern, part)
            for pattern in (r"Used (\d+) registers", r"(\d+) bytes smem", memory, memory)
        )
        assert registers and stack and spills, part
        found[name, architecture] = Usage(
            int(registers[1]), int(shared[1]) if shared else 0, int(stack[1]), int(spills[2])
        )
    return found


def parse_sass(text: str) -> dict[Key, frozenset[str]]:
    """Return the opcodes of each function of a disassembled cubin."""
    target = re.search(r"\.target\s+(\w+)", text)
    assert target, text[:500]
    opcodes: dict[Key, set[str]] = defaultdict(set)
    for part in re.split(r"^\.text\.", text, flags=re.MULTILINE)[1:]:
        name = part.partition(":")[0]
        code = r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)"
        opcodes[name, target[1]] |= set(re.findall(code, part, flags=re.MULTILINE))
    return {key: frozenset(found) for key, found in opcodes.items()}


def is_a(opcode: str, wanted: str) -> bool:
    """Tell whether an opcode has all parts of another, in order: LDG.E.64.CONSTANT is LDG.64."""
    parts = iter(opcode.split("."))
    first, *others = wanted.split(".")
    return next(parts) == first and all(part in parts for part in others)


def load_limits(path: Path) -> list[Limit]:
    """Read the table of limits."""
    entries = tomllib.loads(path.read_text()).get("kernel", [])
    return [Limit(**{**e, "instructions": tuple(e.get("instructions", ()))}) for e in entries]


def limit_of(kernel: Compiled, limits: Sequence[Limit]) -> Limit | None:
    """Return the entry that a kernel is held to."""
    return next((limit for limit in limits if fnmatchcase(kernel.name, limit.name)), None)


def violations(kernel: Compiled, limit: Limit) -> Iterator[str]:
    """Say what is wrong with a kernel."""
    usage = kernel.usage
    if usage.stack or usage.spills:
        yield f"{usage.stack} bytes of stack, {usage.spills} bytes of spills, limit 0"
    for opcode in sorted(kernel.opcodes):
        if opcode.split(".")[0] in LOCAL_MEMORY:
            yield f"{opcode}: local memory is used"
    if usage.registers > limit.registers:
        yield f"{usage.registers} registers, limit {limit.registers}"
    if usage.shared > limit.shared:
        yield f"{usage.shared} bytes of static shared memory, limit {limit.shared}"
    for wanted in limit.instructions:
        if not any(is_a(opcode, wanted) for opcode in kernel.opcodes):
            yield f"no {wanted}"


def compile_file(source: Path) -> list[Compiled]:
    """Compile a file as the build does, host code too, and look at every kernel in it."""
    tools = toolkit.find()
    *older, newest = toolkit.ARCHITECTURES
    targets = [f"arch=compute_{number},code=sm_{number}" for number in older]
    targets.append(f"arch=compute_{newest},code=[sm_{newest},compute_{newest}]")
    with tempfile.TemporaryDirectory() as folder:
        keep = ("--keep", "--keep-dir", folder, "-o", f"{folder}/object.o")
        generate = [flag for target in targets for flag in ("-gencode", target)]
        include = toolkit.includes(toolkit.CSRC)
        flags = (*toolkit.FLAGS, *include, *STRICT, *generate, *keep)
        usage = parse_usage(toolkit.run([tools.nvcc, *flags, "-c", source]).stderr)
        opcodes: dict[Key, frozenset[str]] = {}
        for cubin in sorted(Path(folder).glob("*.cubin")):
            opcodes |= parse_sass(toolkit.run([tools.nvdisasm, "-c", cubin]).stdout)
    names = toolkit.demangle(sorted({name for name, _ in usage}))
    return [Compiled(names[key[0]], key[1], usage[key], opcodes[key]) for key in sorted(usage)]


def complaints(log: str) -> str:
    """Leave out of a compiler's messages what is not one; use C++ names."""
    lines = toolkit.run(["c++filt"], log).stdout.splitlines()
    return "\n".join(line for line in lines if not re.match(r"ptxas info|\s+\d+ bytes stack", line))


def check(kernels: Sequence[Compiled], limits: Sequence[Limit]) -> list[str]:
    """Return all violations, each with kernel, architecture, number and limit."""
    wrong = []
    for kernel in kernels:
        limit = limit_of(kernel, limits)
        if not limit:
            wrong.append(f"{kernel.name}: no entry in {LIMITS.name}")
        else:
            place = f"{kernel.name}, {kernel.architecture}"
            wrong += [f"{place}: {text}" for text in violations(kernel, limit)]
    return list(dict.fromkeys(wrong))


def unused(kernels: Sequence[Compiled], limits: Sequence[Limit]) -> list[str]:
    """Return complaints about entries that no kernel is held to."""
    used = {limit_of(kernel, limits) for kernel in kernels}
    return [f"{limit.name}: no such kernel" for limit in limits if limit not in used]


def table(kernels: Sequence[Compiled], limits: Sequence[Limit]) -> str:
    """Show what each kernel uses and may use: registers by architecture, shared memory."""
    by_name: dict[str, dict[str, Compiled]] = defaultdict(dict)
    for kernel in kernels:
        by_name[kernel.name][kernel.architecture] = kernel
    architectures = [f"sm_{number}" for number in toolkit.ARCHITECTURES]
    rows = [["kernel", *architectures, "limit", "shared", "limit"]]
    for name, found in by_name.items():
        limit = limit_of(next(iter(found.values())), limits)
        registers = [str(found[a].usage.registers) if a in found else "-" for a in architectures]
        shared = max(kernel.usage.shared for kernel in found.values())
        most = [str(limit.registers), str(limit.shared)] if limit else ["?", "?"]
        rows.append([name, *registers, most[0], str(shared), most[1]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])])
        for name, *numbers in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Check files; return 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.gate", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="default: csrc/cuda/*.cu")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="files at a time")
    parser.add_argument("--limits", type=Path, default=LIMITS, help="default: %(default)s")
    options = parser.parse_args(arguments)
    files = options.files or sorted((toolkit.ROOT / "csrc/cuda").glob("*.cu"))
    limits = load_limits(options.limits)
    try:
        toolkit.find().nvdisasm  # noqa: B018
    except FileNotFoundError as error:
        parser.error(str(error))
    kernels: list[Compiled] = []
    wrong = [] if files else ["no csrc/cuda/*.cu"]
    with ThreadPoolExecutor(options.jobs) as pool:
        for future in [pool.submit(compile_file, file) for file in files]:
            try:
                kernels += future.result()
            except RuntimeError as error:
                wrong.append(complaints(str(error)))
    print(table(kernels, limits))
    wrong += check(kernels, limits)
    if not options.files and not wrong:
        wrong += unused(kernels, limits)
    for text in wrong:
        print(f"error: {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
