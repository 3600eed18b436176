"""The command ``fastgen-vllm eval`` on a tiny model: from options to files, and back again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastgen_vllm.evaluation import cli
from fastgen_vllm.evaluation.contexts import TASKS
from fastgen_vllm.evaluation.peers import PEERS
from fastgen_vllm.evaluation.results import Results
from fastgen_vllm.evaluation.settings import Settings
from fastgen_vllm.evaluation.statistics import is_ours
from tests.evaluation.tiny import CODE, MANUAL
from tests.policy import own

ROOT = Path(__file__).parents[2]
SECONDS = 240  # of one run, on a busy machine

LENGTHS, RETRIEVAL_LENGTH, CONTINUATION, KEEP = (256, 320), 1024, 16, 0.5
PASSAGES = [f"{kind}-{length}-0" for kind in ("prose", "code") for length in LENGTHS]
CONTEXTS = [*(f"seen-{task}-{RETRIEVAL_LENGTH}-0" for task in TASKS)]
CONTEXTS += [f"{protocol}-facts-{RETRIEVAL_LENGTH}-0" for protocol in ("unseen", "turns")]
PEER_METHODS = {(peer, KEEP) for peer in PEERS}
OURS = {("balanced", None), ("balanced", KEEP), ("balanced T=0.6", None)}
FULL = {("full", None)}


@dataclass(frozen=True)
class Run:
    """A command that has ended."""

    code: int
    out: str
    err: str
    json: Path

    @property
    def parts(self) -> Path:
        return self.json.with_name(f"{self.json.name}.parts")

    @property
    def results(self) -> Results:
        return Results.model_validate_json(self.json.read_text("utf-8"))

    @property
    def errors(self) -> list[str]:
        """Lines that are no progress bar."""
        lines = re.split(r"[\r\n]+", self.err)
        return [line for line in lines if line and not re.search(r"\dpart \[|s/part|part/s", line)]


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Start the command in a session of its own, with Ctrl-C at work, as a terminal does.

    Tests that run in the background have it ignored, and would hand that on.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "fastgen_vllm", "eval", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str], json_path: Path) -> Run:
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return Run(process.returncode, out, err, json_path)


@dataclass(frozen=True)
class Place:
    """A directory with a model and texts, and the options of a small run."""

    path: Path

    @property
    def options(self) -> list[str]:
        return [
            *("--model", "model", "--texts", "prose=prose.txt", "--texts", "code=code.txt"),
            *("--lengths", ",".join(map(str, LENGTHS)), "--per-kind", "1"),
            *("--continuation", str(CONTINUATION), "--keep", str(KEEP), "--recovery", "0.6"),
            *("--retrieval-lengths", str(RETRIEVAL_LENGTH), "--samples", "1", "--peers"),
            *("--pool-gib", "0.05"),
        ]

    def start(self, name: str, *more: str) -> subprocess.Popen[str]:
        return start(*self.options, "--json", name, *more, cwd=self.path)

    def run(self, name: str, *more: str) -> Run:
        return finish(self.start(name, *more), self.path / name)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what the command, run in this process, would set for good."""
    for variable in ("VLLM_LOGGING_LEVEL", "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.setenv(variable, "ERROR")


@pytest.fixture(scope="module")
def place(tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    path = tmp_path_factory.mktemp("eval")
    (path / "model").symlink_to(tiny_chat)
    (path / "prose.txt").write_text(MANUAL[:200_000], "utf-8")
    (path / "code.txt").write_text(CODE, "utf-8")
    return Place(path)


@dataclass(frozen=True)
class Runs:
    whole: Run
    interrupted: Run
    parts_then: list[str]  # that the interrupted run left
    refused: Run  # neither resumed nor removed
    resumed: Run


@pytest.fixture(scope="module")
def runs(place: Place) -> Runs:
    """One run from end to end, and beside it one that is interrupted and resumed."""
    whole_process = place.start("whole.json")
    process = place.start("torn.json")
    path = place.path / "torn.json.parts"
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    interrupted = finish(process, place.path / "torn.json")
    parts = [json.loads(line).get("part", "") for line in path.read_text().splitlines()]
    whole = finish(whole_process, place.path / "whole.json")
    refused = place.run("torn.json")
    return Runs(whole, interrupted, parts[1:], refused, place.run("torn.json", "--resume"))


# -- a run from end to end -----------------------------------------------------------------


def test_a_run_ends_well(runs: Runs) -> None:
    run = runs.whole
    assert run.code == 0, run.err
    assert run.errors == []
    assert run.out.endswith("Results: whole.json. Report: whole.html.\n")
    assert not run.parts.exists()
    for method in (*OURS, *PEER_METHODS):
        assert f"| {method[0]} " in run.out
    assert "| continuation | balanced at 50 % |" in run.out
    assert "beyond the uncompressed model: seen copy; " in run.out


def test_every_method_meets_every_passage(runs: Runs) -> None:
    rows = runs.whole.results.divergence
    found = {(row.method, row.target, row.text) for row in rows}
    assert found == {(*method, text) for method in OURS | PEER_METHODS for text in PASSAGES}
    assert len(found) == len(rows)
    for row in rows:
        series = (row.kl, row.nll, row.full_nll, row.agree)
        assert {len(values) for values in series} == {CONTINUATION}
        assert row.kl[0] == pytest.approx(0, abs=1e-5), "the prompt itself is not compressed"
        assert sum(row.kl) > 0.01
        assert row.text == f"{row.kind}-{row.prompt_tokens}-0"


def test_every_method_answers_every_question(runs: Runs) -> None:
    rows = runs.whole.results.retrieval
    found = {(row.method, row.target, row.context, row.question) for row in rows}
    assert len(found) == len(rows)
    for method in FULL | OURS | PEER_METHODS:
        mine = [row for row in rows if (row.method, row.target) == method]
        assert list(dict.fromkeys(row.context for row in mine)) == CONTEXTS
        for protocol in ("seen", "unseen", "turns"):
            tasks = [row.task for row in mine if row.protocol == protocol]
            # Where a prompt serves all questions, two of them copy.
            assert sorted(tasks) == sorted([*TASKS, *([] if protocol == "seen" else ["copy"])])
    assert {row.prompt_tokens for row in rows} == {RETRIEVAL_LENGTH}
    for row in rows:
        assert len(row.kl) == len(row.nll) == len(row.full_nll) > 0
        assert row.method != "full" or (not any(row.kl) and row.nll == row.full_nll)


def test_later_questions_are_decoded_from_the_compressed_prompt(runs: Runs) -> None:
    """All of their tokens; of a question in the prompt, the reply's first comes from it."""
    for row in runs.whole.results.retrieval:
        if row.method != "full" and row.kept_share < 1 and row.protocol != "seen":
            assert min(row.kl) > 0
        if row.method != "full" and (row.protocol, row.task) == ("seen", "summary"):
            assert row.kl[0] == pytest.approx(0, abs=1e-5)


def test_the_models_own_replies_are_kept(runs: Runs) -> None:
    """Found once, by the engine, and forced by everybody: the model agrees with itself."""
    results = runs.whole.results
    replies = {reply.context: reply for reply in results.replies}
    assert list(replies) == [
        name for name in CONTEXTS if name.split("-")[1] in ("summary", "facts")
    ]
    for row in results.retrieval:
        if row.task == "summary":
            assert len(row.kl) == len(replies[row.context].tokens) > 1
            assert row.question == replies[row.context].question
            assert row.correct or row.method != "full"


def test_targets_are_met(runs: Runs) -> None:
    """Ours to half a token over all heads, theirs to a token of each head."""
    results = runs.whole.results
    for row in (*results.divergence, *results.retrieval):
        if row.target is None:
            assert (row.kept_share == 1) == (row.method == "full")
        else:
            allowed = 1e-3 if is_ours(row.method) else 1 / row.prompt_tokens
            assert row.kept_share == pytest.approx(KEEP, abs=allowed)


def test_both_sides_compare_with_the_same_model(runs: Runs) -> None:
    """Uncompressed, the engine and the PyTorch model of the peers agree on every token."""
    full: dict[str, list[float]] = {}
    results = runs.whole.results
    texts = [(row.text, row.full_nll) for row in results.divergence]
    texts += [(f"{row.context}/{row.question}", row.full_nll) for row in results.retrieval]
    for text, nll in texts:
        assert nll == pytest.approx(full.setdefault(text, nll), abs=2e-4)
    assert len(full) == len(PASSAGES) + len(TASKS) + 2 * (len(TASKS) + 1)


def test_memory_and_heads_are_of_our_own_methods(runs: Runs) -> None:
    results = runs.whole.results
    expected = {(*method, text) for method in OURS for text in PASSAGES}
    assert {(row.method, row.target, row.text) for row in results.memory} == expected
    assert {(row.method, row.target, row.text) for row in results.heads} == expected
    for row in results.heads:
        kept = [share for layer in row.kept for share in layer]
        assert sum(kept) / len(kept) == pytest.approx(row.kept_share, abs=1e-6)


def test_facts_tell_the_circumstances(runs: Runs) -> None:
    found = runs.whole.results.facts
    assert found["model"] == "model"
    assert found["seed"] == 0 and found["keep"] == [KEEP] and found["peers"] is True
    assert found["texts"] == ["prose=prose.txt", "code=code.txt"]
    assert {"date", "cpu", "torch", "transformers", "kvpress"} <= found.keys()


def test_the_report_is_one_page(runs: Runs) -> None:
    html = runs.whole.json.with_suffix(".html").read_text("utf-8")
    assert html.lower().startswith("<!doctype html>") and "</html>" in html
    for words in ("balanced", "kvpress SnapKV", "Beside the best peer"):
        assert words in html


# -- a policy of the user's own --------------------------------------------------------------


def test_an_own_policy_is_measured(place: Place) -> None:
    (place.path / "own.yaml").write_text(f"policy: {own.MODULE}:Every\nrecovery: 0.3\n")
    options = ["--model", "model", "--texts", "code=code.txt", "--lengths", "256"]
    small = ["--per-kind", "1", "--continuation", "4", "--retrieval", "", "--pool-gib", "0.05"]
    process = start("--preset", "own.yaml", *options, *small, "--json", "own.json", cwd=place.path)
    run = finish(process, place.path / "own.json")
    assert run.code == 0, run.err
    (row,) = run.results.heads
    assert row.method == "own"
    policies = {name for layer in row.policy for name in layer}
    assert "every" in policies <= {"every", "full"}
    for shares, names in zip(row.kept, row.policy, strict=True):
        for share, name in zip(shares, names, strict=True):
            assert share == pytest.approx(86 / 256 if name == "every" else 1)


# -- interruption ------------------------------------------------------------------------


def test_an_interruption_says_how_to_go_on(runs: Runs) -> None:
    run = runs.interrupted
    assert run.code == 130
    assert run.errors == [
        "fastgen-vllm eval: error: interrupted",
        "Finished parts are in torn.json.parts: go on with --resume.",
    ]
    assert run.out == ""


def test_finished_parts_survive(runs: Runs) -> None:
    num_parts = 2 * (len(PASSAGES) + len(CONTEXTS))  # of the preset and of the peers
    assert 2 <= len(runs.parts_then) < num_parts, "it was not interrupted in the middle"
    assert runs.parts_then[:2] == [f"balanced/{passage}" for passage in PASSAGES[:2]]


def test_an_unfinished_run_is_not_begun_anew(runs: Runs) -> None:
    run = runs.refused
    assert run.code == 2
    assert "torn.json.parts holds parts of an unfinished evaluation" in run.errors[0]
    assert "--resume" in run.errors[0]


def test_a_resumed_run_equals_an_uninterrupted_one(runs: Runs) -> None:
    """And so a second run of one seed equals the first: nothing is shared but the options."""
    assert runs.resumed.code == 0, runs.resumed.err
    assert not runs.resumed.parts.exists()
    assert runs.resumed.json.with_suffix(".html").exists()
    texts = []
    for run in (runs.whole, runs.resumed):
        results = run.results
        del results.facts["date"]
        texts.append(results.model_dump_json(indent=1))
    assert texts[0] == texts[1]


# -- mistakes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--keep", "1.5"], "--keep 1.5: must be above 0 and at most 1."),
        (["--keep", "0.5,0"], "--keep 0.0: must be above 0 and at most 1."),
        (["--keep", "1", "--peers"], "--keep 1.0: must be below 1 with --peers."),
        (["--recovery", "nan"], "--recovery nan: must be above 0 and at most 1."),
        (["--tasks", "gsm8k,mmlu"], "--tasks mmlu: must be one of gsm8k, humaneval."),
        (["--retrieval", "haystack"], "--retrieval haystack: must be one of passkey, keys, "),
        (["--protocols", "later"], "--protocols later: must be one of continuation, seen, "),
        (["--lengths", "100"], "--lengths, --retrieval-lengths 100: must be at least 256."),
        (["--continuation", "1"], "--continuation 1: must be at least 2."),
        (["--samples", "0"], "--samples 0: must be at least 1."),
        (["--pool-gib", "0"], "--pool-gib 0.0: must be above 0."),
        (["--json", "nowhere/a.json"], "--json nowhere/a.json: there is no directory nowhere."),
        (["--resume"], "--resume: there is no fastgen-eval.json.parts to go on with."),
    ],
)
def test_mistakes_are_told_at_once(
    arguments: list[str],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fastgen-vllm eval: error: {problem}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--keep", "half"], ["--dtype", "int8"], ["--nope"]])
def test_unreadable_options_exit_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("fastgen-vllm eval: error: ") and arguments[-1] in error


def test_a_mistake_is_an_exit_code(tmp_path: Path) -> None:
    run = finish(start("--keep", "1.5", cwd=tmp_path), tmp_path / "fastgen-eval.json")
    assert run.code == 2
    assert run.err == "fastgen-vllm eval: error: --keep 1.5: must be above 0 and at most 1.\n"


def test_help_tells_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    text = capsys.readouterr().out
    for option in vars(Settings()):
        assert f"--{option.replace('_', '-').replace('presets', 'preset')} " in text


#: Options that are only looked at when the model is there, and what is said of them.
LATE = {
    "texts": (["--texts", "prose=nofile.txt"], "--texts prose=nofile.txt: cannot read nofile.txt"),
    "kind": (["--texts", "nofile.txt"], "--texts nofile.txt: give KIND=FILE"),
    "short": (["--texts", "prose=short.txt"], "texts of kind 'prose': none has "),
    "ablation": (["--ablation"], "--ablation needs a preset of policy paper: add --preset paper."),
    "twice": (["--preset", "paper", "--preset", "paper"], "--preset: two of paper, paper have"),
    "preset": (["--preset", "nope"], "--preset nope: no such preset or file. Use one of balanced"),
}


@pytest.fixture
def late(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a run in this process, whose working directory holds little."""
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("Too short for anything.")
    return ["--model", str(place.path / "model"), "--retrieval", "", "--json", "a.json"]


@pytest.mark.parametrize("name", LATE)
def test_later_mistakes_are_told_in_a_line(
    name: str, place: Place, late: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, problem = LATE[name]
    if "--texts" not in arguments:
        late += ["--texts", f"prose={place.path / 'prose.txt'}"]
    assert cli.main([*late, *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    (line,) = errors
    assert line.startswith(f"fastgen-vllm eval: error: {problem}")


@pytest.mark.parametrize("name", ["texts", "preset"])
def test_later_mistakes_leave_nothing_behind(
    name: str, late: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the corrected command is refused: the parts are of other options."""
    before = sorted(Path().iterdir())
    assert cli.main([*late, *LATE[name][0]]) == 2
    assert sorted(Path().iterdir()) == before
    assert "--resume" not in capsys.readouterr().err


def test_missing_kvpress_is_told_at_once(
    place: Place,
    late: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fastgen_vllm.evaluation import ours

    monkeypatch.setitem(sys.modules, "kvpress", None)
    started = []
    monkeypatch.setattr(ours, "measure_on_engine", lambda *_: started.append(1) or iter(()))
    texts = ["--texts", f"prose={place.path / 'prose.txt'}", "--lengths", "256"]
    assert cli.main([*late, *texts, "--peers"]) == 2
    assert "--peers needs kvpress" in capsys.readouterr().err
    assert not started


@pytest.mark.parametrize("name", ["out.html", "."])
def test_results_do_not_overwrite_the_report(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--json", name]) == 2
    assert "name a file, such as out.json" in capsys.readouterr().err
