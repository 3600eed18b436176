"""Commands of README and docs that take minutes, to their end as they stand: over an hour in all.

They run in a folder that looks like the root (`make` in the root itself), with what they name in
place: the default model for `path/or/hub-name`, the files that the docs show. A server answers a
chat, and stops when told to. Nothing is said of what the numbers are.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import urllib.request
from pathlib import Path
from pydoc_data.topics import topics

import openai
import pytest

from tests.docs.snippets import ROOT, Snippet, commands, save_presets
from tests.evaluation.tiny import CHAT_TEMPLATE, tiny_tokenizer
from tests.models.lckv import save_lckv
from tests.server.running import wait_for

pytestmark = pytest.mark.slow

SECONDS = 2 * 3600  # for one command
STOP_SECONDS = 60
#: What commands need of the root.
OF_ROOT = (".venv", "benchmark.py", "examples")
#: What a command begins with, after the folder of programs.
RUN = ("fastgen-vllm eval", "python benchmark.py", "python -m fastgen_vllm.selfcheck")
SERVE = ("fastgen-vllm serve", "make serve")


def beginning(starts: tuple[str, ...]) -> list[Snippet]:
    """Commands that begin so; one that stands on several pages, once."""
    found = {}
    for command in commands():
        program, *rest = command.words
        if " ".join([Path(program).name, *rest]).startswith(starts):
            found.setdefault(tuple(shlex.split(command.text, comments=True)), command)
    return list(found.values())


@pytest.fixture
def place(tmp_path: Path, default_model: Path) -> Path:
    """A folder like the root, in which everything that the commands name exists."""
    for name in OF_ROOT:
        (tmp_path / name).symlink_to(ROOT / name)
    save_presets(tmp_path)
    (tmp_path / "book.txt").write_text("\n\n".join(topics.values()))
    for name in ("path/or/hub-name", "model/a", "model/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(default_model)
    lckv = tmp_path / "path/of/an/lckv/checkpoint"
    save_lckv(lckv, "0_6_6_6_6_6_6_7")
    tiny_tokenizer(CHAT_TEMPLATE).save_pretrained(lckv)
    return tmp_path


def start(command: Snippet, place: Path) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own; what it prints goes to `place`/log."""
    environment = {**os.environ, "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"}
    with (place / "log").open("w") as log:
        return subprocess.Popen(
            ["bash", "-euc", f"exec env {command.text}"],
            cwd=ROOT if command.words[0] == "make" else place,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing of a command behind, whatever became of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def value_of(words: list[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


@pytest.mark.parametrize("command", beginning(RUN), ids=str)
def test_it_runs(command: Snippet, place: Path) -> None:
    process = start(command, place)
    try:
        code = process.wait(SECONDS)
        said = (place / "log").read_text()
        assert code == 0, said
    finally:
        end(process)
    words = command.words
    files = [value_of(words, "--json"), value_of(words, "--plot")]
    if "eval" in words:
        results = Path(files[0] or "fastgen-eval.json")
        files = [str(results), str(results.with_suffix(".html"))]
        assert f"Results: {results}." in said
    for name in filter(None, files):
        assert (place / name).stat().st_size > 1000
    for engine in (value_of(words, "--engines") or "").split(","):
        assert engine in said


@pytest.mark.parametrize("command", beginning(SERVE), ids=str)
def test_it_serves(command: Snippet, place: Path) -> None:
    port = re.search(r"--port (\d+)", command.text)
    url = f"http://127.0.0.1:{port[1] if port else 8000}"
    process = start(command, place)
    try:
        wait_for(url, process, place / "log")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        (model,) = client.models.list().data
        answer = client.chat.completions.create(
            model=model.id,
            messages=[{"role": "user", "content": topics["specialnames"][:2000]}],
            max_tokens=8,
        )
        assert answer.usage is not None and answer.usage.completion_tokens > 0
        with urllib.request.urlopen(f"{url}/fastgen/status") as status:
            assert json.load(status)["active"]
        process.send_signal(signal.SIGTERM)
        code = process.wait(STOP_SECONDS)
        # `make` hands the signal on, waits, and ends by it.
        by_make = command.words[0] == "make"
        assert code == (-signal.SIGTERM if by_make else 0), (place / "log").read_text()
    finally:
        end(process)
