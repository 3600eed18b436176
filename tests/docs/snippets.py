"""The fenced blocks of README and docs, and the commands in them."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

#: A line that sets a variable for the command below it.
_ASSIGNMENT = re.compile(r"^[a-z]+=.*\n")
_VARIABLE = re.compile(r"[A-Z_]+=\S*")


@dataclass(frozen=True)
class Snippet:
    """A block, or one command of a shell block."""

    page: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text.splitlines()[0][:60]}"

    @property
    def words(self) -> list[str]:
        """Of a command, without comments and variables that it sets."""
        words = shlex.split(_ASSIGNMENT.sub("", self.text), comments=True)
        return list(dropwhile(_VARIABLE.fullmatch, words))


def pages() -> list[Path]:
    """README and everything in docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def snippets() -> Iterator[Snippet]:
    """All that somebody may copy; drawings and formulas are marked as text."""
    for page in pages():
        name = str(page.relative_to(ROOT))
        for language, text in _BLOCK.findall(page.read_text("utf-8")):
            if language == "text":
                continue
            for part in _commands(text) if language == "sh" else [text]:
                yield Snippet(name, language, part)


def save_presets(folder: Path) -> None:
    """Make the YAML files that commands name, as the docs show them."""
    (shown,) = [s for s in snippets() if s.page == "docs/presets.md" and s.language == "yaml"]
    (folder / "my.yaml").write_text(shown.text)
    for written in commands():
        if written.words[0] == "echo":
            subprocess.run(["bash", "-c", written.text], cwd=folder, check=True)


def commands() -> list[Snippet]:
    """The commands of all shell blocks."""
    return [each for each in snippets() if each.language == "sh"]


def _commands(text: str) -> Iterator[str]:
    """Split a shell block; a command begins with what it needs and ends when its quotes do."""
    command = ""
    for line in text.splitlines():
        command += line
        try:
            words = shlex.split(command, comments=True)
        except ValueError:  # an open quote
            command += "\n"
            continue
        if _ASSIGNMENT.match(f"{line}\n"):
            command += "\n"
            continue
        if words:
            yield command
        command = ""
    assert not command, f"a quote is open: {command}"
