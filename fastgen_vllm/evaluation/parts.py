"""Finished parts of an evaluation, on disk as soon as each is done."""

import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fastgen_vllm.evaluation.results import Reply, Results

_ROWS = Results.model_fields.keys() - {"facts"}


class PartsFile:
    """A file of JSON lines: what was asked for, then one finished part each.

    A line is on the disk before the next part starts, so a crash, a full disk or Ctrl-C costs
    the part at hand and no other. A torn last line is left out when resuming.

    Args:
        path: of the file; its directory must exist.
        asked: options that decide what parts mean; a resumed run must ask the same.
        resume: go on with what the file holds.

    Raises:
        ValueError: the file is there and ``resume`` is not given, or is not there although it
            is, or holds parts of another evaluation.
    """

    def __init__(self, path: Path, asked: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        self._parts: dict[str, Results] = {}
        if resume:
            self._read(asked)
        elif path.exists():
            raise ValueError(
                f"{path} holds parts of an unfinished evaluation. "
                "Go on with --resume, or remove the file."
            )
        else:
            self._append({"asked": asked})

    def __contains__(self, part: str) -> bool:
        return part in self._parts

    def __len__(self) -> int:
        return len(self._parts)

    def add(self, part: str, rows: Results) -> None:
        """Keep a finished part.

        Raises:
            OSError: it could not be written.
        """
        self._append({"part": part, "rows": rows.model_dump(mode="json", exclude={"facts"})})
        self._parts[part] = rows

    def replies(self, context: str) -> list[Reply]:
        """The uncompressed model's own replies to questions about a prompt, from any part."""
        every = (reply for rows in self._parts.values() for reply in rows.replies)
        return [reply for reply in every if reply.context == context]

    def results(self, facts: dict[str, Any], order: list[str]) -> Results:
        """Join all parts, in the given order of their names, whatever order they came in."""
        joined = Results(facts=facts)
        for part in order:
            for name in _ROWS:
                getattr(joined, name).extend(getattr(self._parts[part], name))
        return joined

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, asked: dict[str, Any]) -> None:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            raise ValueError(f"--resume: there is no {self.path} to go on with.") from None
        whole = content[: content.rfind(b"\n") + 1]
        try:
            self._take([json.loads(line) for line in whole.splitlines()], asked)
        except (json.JSONDecodeError, ValidationError, KeyError) as error:
            raise ValueError(f"--resume: {self.path} is damaged ({error}); remove it.") from None
        if whole != content:
            os.truncate(self.path, len(whole))

    def _take(self, lines: list[dict[str, Any]], asked: dict[str, Any]) -> None:
        if not lines or "asked" not in lines[0]:
            raise ValueError(f"--resume: {self.path} holds no parts of an evaluation; remove it.")
        before = lines[0]["asked"]
        for name in sorted(before.keys() | asked.keys()):
            if before.get(name) != asked.get(name):
                raise ValueError(
                    f"--resume: {self.path} was made with {name}={before.get(name)!r}, not "
                    f"{asked.get(name)!r}. Use the same options, or remove the file."
                )
        for line in lines[1:]:
            self._parts[line["part"]] = Results.model_validate(line["rows"])
