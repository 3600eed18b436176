"""From PTX text to kernels: parameters, variables and a list of instructions.

Inline assembly needs no care but for its braces, which open a scope for names; nvcc's registers
start with %, those of inline assembly are known by their declarations.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np

from tests.cuda.ptx.values import LANES, TYPE, Bits, encode, width
from tests.cuda.toolkit import demangle


class Unsupported(Exception):
    """PTX that this interpreter does not know."""


@dataclass(frozen=True)
class Register:
    """A register, or a special one such as %tid.x; predicates may be negated."""

    name: str
    negated: bool = False


@dataclass(frozen=True)
class Immediate:
    """A constant, the same in all lanes."""

    bits: Bits


@dataclass(frozen=True)
class Symbol:
    """A variable or parameter, standing for its address; or a label."""

    name: str


@dataclass(frozen=True)
class Address:
    """[base + offset]."""

    base: "Operand"
    offset: int


@dataclass(frozen=True)
class Tuple:
    """{a, b, ...} of a vector, or a|b of two results."""

    parts: tuple["Operand", ...]


Operand: TypeAlias = Register | Immediate | Symbol | Address | Tuple


@dataclass(frozen=True)
class Variable:
    """A parameter, or a variable in shared, local or constant memory."""

    name: str
    kind: str
    size: int  # in bytes; 0: as large as the launch says
    align: int
    values: tuple[int, ...] = ()  # bits of the first elements, if initialised


@dataclass(frozen=True)
class Instruction:
    """One instruction: @guard opcode.modifiers operands."""

    opcode: str
    modifiers: tuple[str, ...]
    kinds: tuple[str, ...]  # those of the modifiers that are types
    operands: tuple[Operand, ...]
    guard: Register | None
    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


@dataclass
class Kernel:
    """An .entry of a module."""

    name: str
    parameters: list[Variable]
    max_threads: int | None
    shared: list[Variable] = field(default_factory=list)
    local: list[Variable] = field(default_factory=list)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    targets: dict[str, list[str]] = field(default_factory=dict)  # of indirect branches


@dataclass(frozen=True)
class Module:
    """What one PTX text defines; kernels are parsed when they are asked for."""

    text: str
    entries: dict[str, tuple[re.Match[str], int]]  # by mangled name: the head, the body's end
    shared: list[Variable]
    constants: list[Variable]
    _parsed: dict[str, Kernel] = field(default_factory=dict)

    @cached_property
    def names(self) -> dict[str, str]:
        """C++ names of the kernels, such as fastgen::compact<__half>, by mangled name."""
        return demangle(list(self.entries))

    def kernel(self, name: str) -> Kernel:
        """Find a kernel by its mangled name, or by a part of its C++ name."""
        if name not in self.entries:
            found = [mangled for mangled, plain in self.names.items() if name in plain]
            if len(found) != 1:
                raise KeyError(f"{name!r} is {len(found)} of {sorted(self.names.values())}")
            name = found[0]
        if name not in self._parsed:
            head, end = self.entries[name]
            self._parsed[name] = _Body(self.text, head, end).kernel
        return self._parsed[name]


IDENTIFIER = r"[\w$]+"
_ENTRY = re.compile(rf"\.entry\s+({IDENTIFIER})\s*(?:\(([^)]*)\))?([^{{;]*)\{{")
_VARIABLE = re.compile(
    r"\.(?P<space>param|shared|local|const|global)\s+(?:\.align\s+(?P<align>\d+)\s+)?"
    r"\.(?P<kind>\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)??(?:\.align\s+\d+\s+)?)?"
    rf"(?P<name>{IDENTIFIER})(?:\[(?P<count>\d*)\])?(?:\s*=\s*\{{?(?P<values>[^}};]*))?"
)
_STATEMENT = re.compile(
    rf"(?P<label>{IDENTIFIER})\s*:(?!:)"
    r"|(?:@(?P<guard>!?%?[\w$]+)\s+)?(?P<opcode>[.\w:$]+)(?P<operands>[^;]*);"
)
_BRACE = re.compile(r"[{}]")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
_NUMBER = re.compile(r"-?(0[xX][0-9a-fA-F]+|\d+)U?")


def parse(text: str) -> Module:
    """Parse the PTX of one compilation."""
    text = re.sub(r"//[^\n]*", "", text)
    entries = {}
    outside = []  # text between kernels
    end = 0
    while entry := _ENTRY.search(text, end):
        outside.append(text[end : entry.start()])
        end = _closing(text, entry.end())
        entries[entry[1]] = entry, end - 1
    outside.append(text[end:])
    variables = [match for part in outside for match in _VARIABLE.finditer(part)]
    of_space = {
        space: [_variable(match) for match in variables if match["space"] in space.split()]
        for space in ("shared", "const global")
    }
    return Module(text, entries, of_space["shared"], of_space["const global"])


def number(text: str) -> int:
    """Return the bits of a constant as an integer, which may be negative."""
    if re.fullmatch(r"0[fFdD][0-9a-fA-F]+", text):
        return int(text[2:], 16)
    if _NUMBER.fullmatch(text):
        digits = text.rstrip("U")
        octal = re.fullmatch(r"-?0[0-7]+", digits)
        return int(digits, 8 if octal else 0)
    raise Unsupported(f"constant {text!r}")


def _closing(text: str, begin: int) -> int:
    """Return the end of the scope that was opened just before `begin`."""
    depth = 1
    for brace in _BRACE.finditer(text, begin):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    raise Unsupported("a kernel without an end")


def _kernel(entry: re.Match[str]) -> Kernel:
    threads = re.search(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", entry[3])
    limit = int(np.prod([int(n) for n in threads.groups("1")])) if threads else None
    return Kernel(entry[1], [_variable(m) for m in _VARIABLE.finditer(entry[2] or "")], limit)


def _variable(match: re.Match[str]) -> Variable:
    item = width(match["kind"]) // 8
    count = int(match["count"] or 0) if match["count"] is not None else 1
    values = tuple(number(value.strip()) for value in (match["values"] or "").split(",") if value)
    return Variable(match["name"], match["kind"], item * count, int(match["align"] or item), values)


class _Body:
    """Reads the statements of one kernel."""

    def __init__(self, text: str, head: re.Match[str], end: int) -> None:
        self.kernel = _kernel(head)
        self._text, self._end = text, end
        self._names: set[str] = set()  # registers of inline assembly
        self._read(head.end())

    def _read(self, begin: int) -> None:
        line = self._text.count("\n", 0, begin) + 1
        last_label = ""
        for match in self._statements(begin):
            line += self._text.count("\n", begin, match.start())
            begin = match.start()
            if match["label"]:
                last_label = match["label"]
                self.kernel.labels[last_label] = len(self.kernel.code)
            elif match["opcode"] == ".branchtargets":
                targets = [target.strip() for target in match["operands"].split(",")]
                self.kernel.targets[last_label] = targets
            elif match["opcode"].startswith("."):
                self._declare(match)
            else:
                self.kernel.code.append(self._instruction(match, line))

    def _statements(self, position: int) -> Iterator[re.Match[str]]:
        while True:
            while position < self._end and self._text[position] in " \t\r\n{};":
                position += 1  # a vector's brace never starts a statement: these are scopes
            if position >= self._end:
                return
            match = _STATEMENT.match(self._text, position, self._end)
            if not match:
                raise Unsupported(f"{self._text[position : position + 60]!r}")
            yield match
            position = match.end()

    def _declare(self, match: re.Match[str]) -> None:
        if match["opcode"] == ".reg":
            self._names |= set(re.findall(r"(?<![\w.$%])[a-zA-Z_$][\w$]*", match["operands"]))
        elif variable := _VARIABLE.match(match[0]):
            spaces = {"shared": self.kernel.shared, "local": self.kernel.local}
            spaces[variable["space"]].append(_variable(variable))

    def _instruction(self, match: re.Match[str], line: int) -> Instruction:
        opcode, *modifiers = match["opcode"].split(".")
        guard = self._operand(match["guard"]) if match["guard"] else None
        return Instruction(
            opcode,
            tuple(modifiers),
            tuple(modifier for modifier in modifiers if TYPE.fullmatch(modifier)),
            tuple(self._operand(part.strip()) for part in _OPERAND.findall(match["operands"])),
            guard if isinstance(guard, Register) else None,
            line,
            " ".join(match[0].split()),
        )

    def _operand(self, text: str) -> Operand:
        if text[0] == "{" or "|" in text:
            parts = re.split(r"[,|]", text.strip("{}"))
            return Tuple(tuple(self._operand(part.strip()) for part in parts))
        if text[0] == "[":
            base, _, offset = text.strip("[]").partition("+")
            return Address(self._operand(base.strip()), number(offset.strip() or "0"))
        name = text.removeprefix("!")
        if name[0] == "%" or name in self._names or name == "_":
            return Register(name, negated=text[0] == "!")
        if re.match(r"[-\d]", text):
            bits = np.full(LANES, number(text), np.int64 if text[0] == "-" else np.uint64)
            return Immediate(encode(bits, "b64"))
        return Symbol(text)
