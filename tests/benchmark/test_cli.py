"""What is refused before anything is measured: in a line, with exit code 2."""

import socket
import sys
from pathlib import Path

import pytest

from fastgen_vllm.benchmark import cli, comparison, serve
from fastgen_vllm.benchmark.model import Model
from fastgen_vllm.benchmark.options import BLOCK_SIZE, model_len
from tests.models.lckv import save_lckv

ALL = ("offline", "serve", "steps")


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*_: object) -> int:
        raise AssertionError("it was measured")

    monkeypatch.setattr(comparison, "run", measured)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error of a command line."""
    try:
        code = cli.main("Load test.", arguments)
    except SystemExit as exit:
        assert isinstance(exit.code, int)
        code = exit.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    prefix = f"benchmark.py {arguments[0]}: error: "
    assert line.startswith(prefix)
    return line.removeprefix(prefix)


@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--engines", "stock,vanilla"], "--engines vanilla: must be stock, bare, fastgen, "),
        (["--fastgen", "nope"], "--fastgen nope: no such preset or file. Use one of balanced"),
        (["--rounds", "0"], "argument --rounds: 0: must be a whole number of at least 1."),
        (["--threads", "two"], "argument --threads: two: must be a whole number of at least 1."),
        (["--threads", "99999"], "--threads 99999: at most "),
        (["--model", "./nowhere"], "--model ./nowhere: there is no such directory."),
        (["--pool-gib", "0"], "argument --pool-gib: 0: must be a number above 0."),
        (["--pool-gib", "nan"], "argument --pool-gib: nan: must be a number above 0."),
        (["--json", "nowhere/a.json"], "--json nowhere/a.json: there is no directory nowhere."),
        (["--json", "."], "--json .: is a directory; name a file."),
        (["--json", "a.html"], "--json a.html: name a file such as out.json, not the plot."),
        (["--plot", "a.pdf"], "--plot a.pdf: must end in .png or .html."),
    ],
)
def test_mistakes_that_every_command_tells(
    command: str,
    arguments: list[str],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused([command, *arguments], capsys).startswith(problem)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["offline", "serve"])
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--num-requests", "0"], "argument --num-requests: 0: must be a whole number"),
        (["--prompt-len", "-5"], "argument --prompt-len: -5: must be a whole number"),
        (["--prompt-len", "2000", "--output-len", "49"],
         "--prompt-len and --output-len: 2049 tokens, but"),
        (["--prompt-len", "512", "--pool-gib", "1e-4"],
         "--pool-gib 0.0001: must be at least 0.00"),
    ],
)  # fmt: skip
def test_loads_that_do_not_fit(
    command: str,
    arguments: list[str],
    problem: str,
    described_model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [command, "--model", str(described_model), *arguments]
    assert refused(given, capsys).startswith(problem)


def test_engines_have_a_block_more_where_the_model_allows_it() -> None:
    named = {n: Model("m", "m", longest, None) for n, longest in (("a", 300), ("b", 310))}
    assert model_len(named, 256) == 256 + BLOCK_SIZE
    assert model_len(named, 290) == 300
    assert model_len({"c": Model("m", "m", None, None)}, 256) == 256 + BLOCK_SIZE


def test_a_layer_condensed_model_needs_less(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pool must hold a request of every side's model."""
    least = {}
    for name, layers in (("plain", "0_1_2_3_4_5_6"), ("lckv", "0_5_5_5_5_5_6")):
        save_lckv(tmp_path / name, layers)
    for engines in ("stock@plain", "stock@lckv", "stock@lckv,stock@plain"):
        given = engines.replace("@", f"@{tmp_path}/")
        tokens = ("--prompt-len", "1800", "--output-len", "200", "--dtype", "float32")
        line = refused(["offline", "--engines", given, "--pool-gib", "1e-5", *tokens], capsys)
        least[engines] = float(line.split("at least ")[1].split(",")[0])
    assert least["stock@plain"] == pytest.approx(least["stock@lckv"] * 7 / 3, rel=0.03)
    assert least["stock@lckv,stock@plain"] == least["stock@plain"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--contexts", "1024,2049"], "--contexts: 2049 tokens, but "),
        (["--contexts", "256,256"], "argument --contexts: '256,256': must be different numbers"),
        (["--contexts", ""], "argument --contexts: '': must be different numbers"),
        (["--running", "4,0"], "argument --running: 0: must be a whole number"),
        (["--contexts", "32", "--steps", "32"], "--contexts 32: at least 39 with 4 running"),
        (["--contexts", "512", "--pool-gib", "0.001"], "--pool-gib 0.001: must be at least 0.0"),
    ],
)
def test_steps_that_cannot_be_measured(
    arguments: list[str], problem: str, described_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["steps", "--model", str(described_model), *arguments]
    assert refused(given, capsys).startswith(problem)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--port", "70000"], "--port 70000: cannot be used: "),
        (["--concurrency", "1,x"], "argument --concurrency: x: must be a whole number"),
        (["--concurrency", "4", "--max-concurrency", "4"], "--max-concurrency: give it or --con"),
        (["--base-url=http://elsewhere"], "--base-url: is set for each side by this command;"),
        (["--num-prompts", "7"], "--num-prompts: is set for each side by this command; use --num"),
        (["--dataset-name", "random", "--pool-gib", "0.001"], "--pool-gib 0.001: must be at leas"),
        (["--max-model-len", "4096"], "--max-model-len: 4096 tokens, but "),
    ],
)
def test_servers_that_cannot_be_driven(
    arguments: list[str], problem: str, described_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["serve", "--model", str(described_model), *arguments]
    assert refused(given, capsys).startswith(problem)


def test_a_port_in_use_is_refused(
    described_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind((serve.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        given = ["serve", "--model", str(described_model), "--port", str(port)]
        assert refused(given, capsys).startswith(f"--port {port}: cannot be used: ")


@pytest.mark.parametrize("content", [None, "no json", "[]"])
def test_a_model_must_be_readable(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    error = refused(["offline", "--model", str(tmp_path)], capsys)
    assert error.startswith(f"--model {tmp_path}: ") and "config.json" in error


def test_plots_need_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "--plot needs matplotlib" in refused(["offline", "--plot", "a.png"], capsys)


@pytest.mark.parametrize("command", ["offline", "steps"])
def test_only_serve_passes_flags_on(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main("Load test.", [command, "--request-rate", "4"])
    assert capsys.readouterr().err == (
        "benchmark.py: error: unrecognized arguments: --request-rate 4\n"
    )


def test_what_is_left_goes_to_the_client_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[list[str]] = []
    monkeypatch.setattr(serve, "run", lambda _, rest: passed.append(rest) or 0)
    flags = [
        "--request-rate",
        "4",
        "--goodput",
        "ttft:300",
        "tpot:50",
        "--metric-percentiles",
        "50",
    ]
    given = ["serve", "--num-requests", "8", *flags, "--rounds", "2", "--burstiness=0.5"]
    assert cli.main("Load test.", given) == 0
    assert passed == [[*flags, "--burstiness=0.5"]]


def test_help_tells_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main("What it is for.", ["--help"])
    out = capsys.readouterr().out
    assert "What it is for." in out
    for command in ("kernels", *ALL):
        assert command in out


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["--shared-len", "9"], "--shared-len is of --workload shared-prefix"),
        (["--turns", "3"], "--turns is of --workload chat"),
        (["--turn-len", "3", "--workload", "shared-prefix"], "--turn-len is of --workload chat"),
        (["--workload", "chat", "--prompt-len", "1000", "--output-len", "250"],
         "--prompt-len and --output-len, of all turns: 2378 tokens, but"),
    ],
)  # fmt: skip
def test_options_of_another_workload(
    arguments: list[str],
    start: str,
    described_model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = ["--model", str(described_model)]
    assert start in refused(["offline", *model, *arguments], capsys)
