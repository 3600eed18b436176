"""Finished parts on disk: what survives an interruption, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastgen_vllm.evaluation.parts import PartsFile
from fastgen_vllm.evaluation.results import (
    Divergence,
    Heads,
    Memory,
    MemoryPoint,
    Reply,
    Results,
    Retrieval,
    Task,
)
from fastgen_vllm.evaluation.settings import Settings

ASKED = Settings().asked()
FACTS = {"date": "2026-01-01", "model": "tiny"}


def rows(text: str, share: float = 1 / 3) -> Results:
    """A part with a row of every kind."""
    named: dict[str, Any] = {"method": "balanced", "target": None, "kept_share": share}
    return Results(
        divergence=[
            Divergence(
                **named,
                text=text,
                kind="prose",
                prompt_tokens=7,
                kl=[0.1, 1e-9],
                nll=[1.5, 2.0],
                full_nll=[1.0, 2.0],
                agree=[True, False],
            )
        ],
        retrieval=[
            Retrieval(
                **named,
                protocol="unseen",
                context=f"unseen-{text}",
                kind="prose",
                task="keys",
                prompt_tokens=7,
                question=0,
                correct=True,
                kl=[0.1],
                nll=[0.2],
                full_nll=[0.1],
            )
        ],
        tasks=[Task(**named, task="gsm8k", sample=text, prompt_tokens=7, correct=False)],
        memory=[
            Memory(
                **named,
                text=text,
                prompt_tokens=7,
                series=[MemoryPoint(generated=2, slots=0.3, pages=0.4, blocks=0.5)],
            )
        ],
        heads=[
            Heads(
                **named,
                text=text,
                prompt_tokens=7,
                kept=[[0.25, 1.0]],
                policy=[["coverage", "full"]],
            )
        ],
        replies=[Reply(context=f"unseen-{text}", question=3, tokens=[5, 6])],
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "eval.json.parts"


def test_results_come_in_the_asked_order(path: Path) -> None:
    parts = PartsFile(path, ASKED, resume=False)
    for name in ("c", "a", "b"):
        parts.add(name, rows(name))
    joined = parts.results(FACTS, ["a", "b", "c"])
    assert joined.facts == FACTS
    assert [row.text for row in joined.divergence] == ["a", "b", "c"]
    for name in ("retrieval", "tasks", "memory", "heads", "replies"):
        expected = [row for text in "abc" for row in getattr(rows(text), name)]
        assert getattr(joined, name) == expected
    assert "a" in parts and "d" not in parts
    assert len(parts) == 3


def test_replies_are_found_by_their_prompt(path: Path) -> None:
    """Also by a run that resumes: nobody is asked twice."""
    parts = PartsFile(path, ASKED, resume=False)
    for name in ("a", "b"):
        parts.add(name, rows(name))
    for found in (parts, PartsFile(path, ASKED, resume=True)):
        assert found.replies("unseen-b") == rows("b").replies
        assert found.replies("unseen-c") == []


def test_a_part_is_on_disk_when_it_is_added(path: Path) -> None:
    parts = PartsFile(path, ASKED, resume=False)
    parts.add("a", rows("a"))
    first = path.read_bytes()
    parts.add("b", rows("b"))
    assert path.read_bytes().startswith(first)
    _asked, *names = [json.loads(line).get("part") for line in path.read_text().splitlines()]
    assert names == ["a", "b"]


def test_resuming_reads_everything(path: Path) -> None:
    before = PartsFile(path, ASKED, resume=False)
    for name in ("a", "b"):
        before.add(name, rows(name))
    after = PartsFile(path, Settings().asked(), resume=True)
    assert len(after) == 2
    assert after.results(FACTS, ["a", "b"]) == before.results(FACTS, ["a", "b"])
    after.add("c", rows("c"))
    assert len(PartsFile(path, ASKED, resume=True)) == 3


def test_resuming_changes_nothing_on_disk(path: Path) -> None:
    PartsFile(path, ASKED, resume=False).add("a", rows("a"))
    before = path.read_bytes()
    PartsFile(path, ASKED, resume=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("share", [1.0, 0.7, 0.5, 0.01], ids=lambda share: f"{share:.0%}")
def test_a_torn_line_is_dropped_and_written_again(path: Path, share: float) -> None:
    """Cut anywhere in the last part, up to the end of its line."""
    parts = PartsFile(path, ASKED, resume=False)
    parts.add("a", rows("a"))
    whole = path.read_bytes()
    parts.add("b", rows("b"))
    complete = path.read_bytes()
    torn = max(1, int(share * (len(complete) - 1 - len(whole))))
    path.write_bytes(complete[: len(whole) + torn])
    resumed = PartsFile(path, ASKED, resume=True)
    assert "a" in resumed and "b" not in resumed
    resumed.add("b", rows("b"))
    assert path.read_bytes() == complete


@pytest.mark.parametrize(
    ("option", "before", "now"),
    [
        ("seed", 0, 1),
        ("keep", (0.25, 0.5), (0.25,)),
        ("presets", ("balanced",), ("paper",)),
        ("texts", (), ("prose=a.txt",)),
        ("model", None, "other"),
        ("dtype", "float32", "bfloat16"),
    ],
)
def test_other_options_are_refused(path: Path, option: str, before: Any, now: Any) -> None:
    PartsFile(path, Settings(**{option: before}).asked(), resume=False)
    content = path.read_bytes()
    with pytest.raises(ValueError) as refusal:
        PartsFile(path, Settings(**{option: now}).asked(), resume=True)
    message = str(refusal.value)
    for word in ("--resume", str(path), f"{option}={plain(before)!r}", repr(plain(now))):
        assert word in message
    assert path.read_bytes() == content


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_options_of_another_version_are_refused(path: Path) -> None:
    PartsFile(path, {**ASKED, "shots": 8}, resume=False)
    with pytest.raises(ValueError, match="shots=8, not None"):
        PartsFile(path, ASKED, resume=True)


def test_an_unfinished_file_is_not_overwritten(path: Path) -> None:
    PartsFile(path, ASKED, resume=False).add("a", rows("a"))
    content = path.read_bytes()
    with pytest.raises(ValueError, match="--resume, or remove") as refusal:
        PartsFile(path, ASKED, resume=False)
    assert str(path) in str(refusal.value)
    assert path.read_bytes() == content


def test_resuming_needs_a_file(path: Path) -> None:
    with pytest.raises(ValueError, match="--resume: there is no ") as refusal:
        PartsFile(path, ASKED, resume=True)
    assert str(path) in str(refusal.value)
    assert not path.exists()


@pytest.mark.parametrize("content", ["", '{"asked": {"se', '{"part": "a", "rows": {}}\n'])
def test_a_file_without_its_first_line_is_refused(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(ValueError, match="holds no parts of an evaluation; remove it"):
        PartsFile(path, ASKED, resume=True)


@pytest.mark.parametrize("line", ["not json", '{"part": "b", "rows": {"divergence": [{}]}}'])
def test_a_damaged_file_is_named(path: Path, line: str) -> None:
    PartsFile(path, ASKED, resume=False).add("a", rows("a"))
    with path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError) as refusal:
        PartsFile(path, ASKED, resume=True)
    assert str(path) in str(refusal.value)


def test_a_missing_directory_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PartsFile(tmp_path / "nowhere" / "eval.json.parts", ASKED, resume=False)


def test_a_removed_directory_keeps_the_parts_in_memory(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    path = tmp_path / "gone" / "parts"
    parts = PartsFile(path, ASKED, resume=False)
    parts.add("a", rows("a"))
    path.unlink()
    path.parent.rmdir()
    with pytest.raises(FileNotFoundError):
        parts.add("b", rows("b"))
    assert "a" in parts and "b" not in parts


ROOT = Path(__file__).parents[2]

_LIMITED = """
import resource, sys
from pathlib import Path
from fastgen_vllm.evaluation.parts import PartsFile
from tests.evaluation.test_parts import ASKED, rows

path, limit = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    parts = PartsFile(path, ASKED, resume=path.exists())
    while len(parts) < 100:
        parts.add(str(len(parts)), rows(str(len(parts))))
except OSError as error:
    print(error.strerror)
"""


def fill(path: Path, limit: int) -> str:
    """Add parts, or resume, where the file can have no more than so many bytes."""
    ran = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(path), str(limit)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return ran.stdout


def test_a_full_disk_costs_the_part_at_hand(path: Path) -> None:
    """A limit on the file's size tears a line as a full disk does."""
    assert fill(path, 5000) == "File too large\n"
    content = path.read_bytes()
    assert len(content) == 5000 and not content.endswith(b"\n"), "the line was not torn"
    resumed = PartsFile(path, ASKED, resume=True)
    finished = len(resumed)
    assert finished == content.count(b"\n") - 1 > 1
    order = [str(number) for number in range(finished + 3)]
    for name in order[finished:]:
        resumed.add(name, rows(name))
    texts = [row.text for row in PartsFile(path, ASKED, resume=True).results({}, order).divergence]
    assert texts == order


def test_dropping_a_torn_line_writes_nothing_anew(path: Path) -> None:
    """On a disk that is still full it would cost the other parts as well."""
    fill(path, 5000)
    whole = path.read_bytes().rpartition(b"\n")[0] + b"\n"
    fill(path, 2500)
    assert path.read_bytes()[: len(whole)] == whole
