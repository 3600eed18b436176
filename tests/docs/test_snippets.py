"""Every command and snippet of README and docs does what it says.

What takes seconds runs as it stands, with another port, a small pool, and the default model for
`path/or/hub-name`. What takes minutes is read by the parser of its own program, with all its
options; `test_long_commands.py` runs it. What needs root is run by `docker/check.sh`.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from fastgen_vllm.benchmark import cli as benchmark
from fastgen_vllm.config import CONFIG_KEY, load_config
from fastgen_vllm.evaluation import cli as evaluation
from fastgen_vllm.integration.summary import SUMMARY_KEY, RequestSummary
from fastgen_vllm.selfcheck import __main__ as selfcheck
from fastgen_vllm.server import cli
from tests.docs.snippets import ROOT, Snippet, commands, save_presets, snippets
from tests.server.running import FLAGS, Server, served
from tests.server.test_http import LONG, MODEL
from tests.soak import __main__ as soak

SNIPPETS = list(snippets())
COMMANDS = commands()
#: Options of an engine that needs little memory and starts soon.
SMALL = "kv_cache_memory_bytes=2**27, enforce_eager=True"
PLACEHOLDERS = ("path/or/hub-name", "org/model", "path/of/an/lckv/checkpoint")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, default_model: Path) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("snippets") / "log", *FLAGS) as server:
        yield server


def run_shell(text: str, folder: Path) -> str:
    """Run a command in the root, with `folder` as home; return what it prints."""
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=ROOT,
        env={**os.environ, "HOME": str(folder), "XDG_CACHE_HOME": cache},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in (0, 23, 141), done.stderr  # 23, 141: `head` hangs up
    return done.stdout


def ask(command: Snippet, server: Server, folder: Path) -> None:
    """`curl`: the server of the snippet answers, without an error."""
    assert "localhost:8000" in command.text
    text = command.text.replace("localhost:8000", f"127.0.0.1:{server.port}")
    answer = run_shell(text.replace("curl -s", "curl -sS --fail-with-body"), folder)
    assert answer.startswith("{") and '"error"' not in answer
    if "head -c" not in text:
        json.loads(answer)


def serve_arguments(words: list[str], model: Path) -> Any:
    """What `fastgen-vllm serve` makes of its options, up to the start of the engine."""
    return cli.prepare([str(model) if word in PLACEHOLDERS else word for word in words])


def check_fastgen(command: Snippet, folder: Path, model: Path) -> None:
    """`fastgen-vllm`: short commands run, long ones are parsed."""
    words = command.words
    match words[1]:
        case "serve":
            assert serve_arguments(with_presets(words[2:], folder), model).additional_config
        case "eval":
            given = with_presets(words[2:], folder)
            evaluation.settings_of(evaluation.parser().parse_args(given))
        case "check":
            assert "vLLM" in run_shell(command.text, folder)
        case "completion":
            target = folder / Path(words[-1]).relative_to("~")
            target.parent.mkdir(parents=True)
            run_shell(command.text, folder)
            assert "_shtab_fastgen_vllm" in target.read_text()
        case other:
            pytest.fail(f"no such command: {other}")


def with_presets(words: list[str], folder: Path) -> list[str]:
    """Name the YAML files of a command where they are."""
    save_presets(folder)
    return [str(folder / word) if (folder / word).is_file() else word for word in words]


def check_make(command: Snippet) -> None:
    """`make`: the target exists, and the options that it hands on are good."""
    _, target, *settings = command.words
    done = subprocess.run(
        ["make", "-n", target, *settings], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for setting in settings:
        assert target in ("serve", "soak") and setting.startswith("ARGS=")
        arguments = shlex.split(setting.removeprefix("ARGS="))
        if target == "serve":
            assert cli.prepare(arguments).port == 9000
        else:
            assert cli.prepare(soak.server_flags(soak.parser().parse_args(arguments)))


def check_docker(command: Snippet, model: Path) -> None:
    """`docker`: what it builds from exists; what the container is told is good."""
    words = command.words
    if "-f" in words:
        assert (ROOT / words[words.index("-f") + 1]).is_file()
    tags = [
        s.words[s.words.index("-t") + 1] for s in COMMANDS if s.words[:2] == ["docker", "build"]
    ]
    if "run" in words:
        (image,) = [word for word in words if word in tags]
        serve_arguments(words[words.index(image) + 1 :], model)


def check_python(command: Snippet, folder: Path) -> None:
    """`python`: our programs, with options that they take."""
    words = command.words
    if words[1] == "benchmark.py":
        given = words[2:]
        parsed = benchmark.parser("", with_kernels=given[0] == "kernels").parse_args(given)
        assert parsed.command == given[0]
    elif words[1:3] == ["-m", "fastgen_vllm.selfcheck"]:
        selfcheck._parser().parse_args(words[3:])
    else:
        script, *given = words[1:]
        assert (ROOT / script).is_file()
        done = subprocess.run([sys.executable, script, *given, "--help"], cwd=ROOT, timeout=300)
        assert done.returncode == 0


def check_pip(command: Snippet) -> None:
    """`pip`: the extra exists."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"\.\[(\w+)\]", command.text)
    assert named and set(named) <= set(extras["optional-dependencies"])


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_commands(
    command: Snippet,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    default_model: Path,
) -> None:
    if command.text.startswith("PYTHONPATH=examples "):
        monkeypatch.syspath_prepend(ROOT / "examples")
    checks: dict[str, Callable[[], None]] = {
        "curl": lambda: ask(command, request.getfixturevalue("server"), tmp_path),
        "docker": lambda: check_docker(command, default_model),
        "echo": lambda: None,  # what it writes is read by the commands after it
        "fastgen-vllm": lambda: check_fastgen(command, tmp_path, default_model),
        "make": lambda: check_make(command),
        "pip": lambda: check_pip(command),
        "python": lambda: check_python(command, tmp_path),
    }
    checks[Path(command.words[0]).name]()


def of(language: str, *marks: str) -> list[Snippet]:
    """Snippets of a language that hold all marks."""
    return [s for s in SNIPPETS if s.language == language and all(m in s.text for m in marks)]


def others(language: str, *marks: str) -> list[Snippet]:
    """Snippets of a language that hold none of the marks."""
    return [s for s in SNIPPETS if s.language == language and not any(m in s.text for m in marks)]


@pytest.mark.parametrize("snippet", others("python", "client."), ids=str)
def test_programs(snippet: Snippet, tmp_path: Path, default_model: Path) -> None:
    program = snippet.text.replace("path/or/hub-name", str(default_model))
    program = program.replace("max_model_len=2048", f"max_model_len=2048, {SMALL}")
    path = tmp_path / "program.py"
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    said = re.findall(r"print\(.*\)  # (.+)$", program, re.MULTILINE)
    assert "\n".join(said) in done.stdout


@pytest.mark.parametrize("snippet", of("python", "client."), ids=str)
def test_client_snippets(snippet: Snippet, server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    names: dict[str, Any] = {
        "client": client,
        "asked": {"model": MODEL, "messages": [{"role": "user", "content": LONG}]},
    }
    *statements, last = snippet.text.replace("...", "**asked").strip().splitlines()
    exec("\n".join(statements), names)
    result = eval(last, names)
    assert result.choices if not statements else result["prompt_tokens"] > 500


def test_the_summary_shown_has_the_fields_of_a_summary() -> None:
    (shown,) = of("json")
    assert list(json.loads(shown.text)) == [field.name for field in fields(RequestSummary)]
    (asked,) = of("python", "kv_transfer_params")
    assert f'kv_transfer_params["{SUMMARY_KEY}"]' in asked.text


@pytest.mark.parametrize("snippet", of("yaml"), ids=str)
def test_yaml(snippet: Snippet, tmp_path: Path) -> None:
    content = yaml.safe_load(snippet.text)
    if "groups" in content:  # rules of Prometheus: tests/docs/test_site.py knows their metrics
        assert all({"alert", "expr"} <= set(rule) for g in content["groups"] for rule in g["rules"])
        return
    path = tmp_path / "options.yaml"
    path.write_text(snippet.text)
    if CONFIG_KEY in content:  # of vLLM's --config
        assert cli.prepare(["--config", str(path)]).additional_config[CONFIG_KEY]
    else:
        load_config(str(path))


def test_no_language_is_left_out() -> None:
    assert {snippet.language for snippet in SNIPPETS} == {"sh", "python", "yaml", "json"}
