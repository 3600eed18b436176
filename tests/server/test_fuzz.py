"""Random requests to every operation of `/openapi.json`, made by schemathesis.

FastGen's endpoints keep what the schema promises; of the others none breaks a promise that stock
keeps. Schemathesis is no requirement of the project: `.venv/bin/uv pip install schemathesis`.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.server.features import KEY, MODEL
from tests.server.running import FLAGS, Server, served

COMMAND = Path(sys.executable).with_name("schemathesis")
#: answers of few tokens, so that thousands of requests take minutes
COMMON = (*FLAGS, "--api-key", KEY, "--override-generation-config", '{"max_new_tokens": 4}')
#: they change the server
LEFT_OUT = ("/scale_elastic_ep", "/is_scaling_elastic_ep")
OPTIONS = (
    *("--max-examples", "20", "--seed", "1", "--generation-deterministic", "--workers", "1"),
    *("--continue-on-failure", "--no-shrink", "--suppress-health-check", "all"),
    *("--header", f"Authorization: Bearer {KEY}", "--report", "ndjson"),
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COMMAND.exists(), reason="schemathesis is not installed"),
]


class Failure(NamedTuple):
    """A check that an operation does not pass with an answer of this status."""

    operation: str
    check: str
    status: int


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, default_model: Path) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("ours") / "log", "--fastgen", "full", *COMMON) as server:
        yield server


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, default_model: Path) -> Iterator[Server]:
    named = ("--model", str(default_model), "--served-model-name", MODEL)
    with served(tmp_path_factory.mktemp("stock") / "log", *COMMON, *named, stock=True) as server:
        yield server


def failures(server: Server, directory: Path, *options: str) -> set[Failure]:
    """Run schemathesis in a directory of its own, which it fills."""
    directory.mkdir()
    report = directory / "events.ndjson"
    command = [COMMAND, "run", f"{server.url}/openapi.json", *OPTIONS, *options]
    with (directory / "log").open("w") as log:
        run = subprocess.run(
            [*command, "--report-ndjson-path", report], cwd=directory, stdout=log, timeout=1800
        )
    assert run.returncode in (0, 1), (directory / "log").read_text()
    found = set()
    for line in report.read_text().splitlines():
        scenario = json.loads(line).get("ScenarioFinished")
        if scenario is not None:
            found |= set(_failures_of(scenario["recorder"]))
    return found


def _failures_of(recorder: dict[str, Any]) -> Iterator[Failure]:
    for case, checks in recorder["checks"].items():
        response = recorder["interactions"].get(case, {}).get("response") or {}
        for check in checks:
            if check["status"] == "failure":
                yield Failure(recorder["label"], check["name"], response.get("status_code", 0))


def test_our_endpoints_keep_their_promises(ours: Server, tmp_path: Path) -> None:
    options = ("--include-path-regex", "^/fastgen", "--phases", "coverage,fuzzing")
    assert failures(ours, tmp_path / "ours", *options) == set()


def test_the_others_break_no_promise_that_stock_keeps(
    ours: Server, stock: Server, tmp_path: Path
) -> None:
    options = ["--exclude-path-regex", "^/fastgen", "--phases", "fuzzing"]
    for path in LEFT_OUT:
        options += ["--exclude-path", path]
    stocks = failures(stock, tmp_path / "stock", *options)
    assert failures(ours, tmp_path / "ours", *options) <= stocks
