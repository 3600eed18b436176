"""Examples that start an engine themselves."""

import re
from pathlib import Path

import pytest

from tests.examples.running import run_example


def test_offline_batch(tiny_model: Path) -> None:
    out = run_example("offline_batch.py", "--model", str(tiny_model), "--prompts", "3")
    row = r"^(\d+) +(\d+)  (0\.\d\d) +(\d+) +(\d+)  ['\"].*$"
    rows = re.findall(row, out, re.MULTILINE)
    assert [request for request, *_ in rows] == ["0", "1", "2"]
    for _, tokens, _, blocks, stock in rows:
        assert int(blocks) < int(stock) == pytest.approx((int(tokens) + 31) / 32, abs=1)
    (most,) = re.findall(r"^most blocks .*: (\d+); .* stock vLLM: (\d+)$", out, re.MULTILINE)
    assert int(most[0]) <= sum(int(stock) for *_, stock in rows)
    (heads,) = re.findall(
        r"^kept of (\d) prompts: (.+), by single heads (.+) to (.+)$", out, re.MULTILINE
    )
    assert heads[0] == "3"
    mean = sum(float(share) for _, _, share, *_ in rows) / 3
    assert float(heads[1]) == pytest.approx(mean, abs=0.011)
    assert float(heads[2]) <= mean <= float(heads[3])


def test_own_policy(default_model: Path) -> None:
    """The engine, another process, finds the class and takes its choice."""
    out = run_example("own_policy.py")
    assert "policy own_policy:Loud" in out
    (heads,) = re.findall(r"^heads: full (\d+), loud (\d+)$", out, re.MULTILINE)
    assert int(heads[0]) + int(heads[1]) == 90 and int(heads[1]) > 0
    (kept,) = re.findall(r"^kept: (0\.\d\d) of (\d+) prompt tokens$", out, re.MULTILINE)
    assert 64 / int(kept[1]) < float(kept[0])
    assert re.search(r"^answer: ['\"].+['\"]$", out, re.MULTILINE)


def test_own_policy_is_served() -> None:
    """As far as it goes without a model."""
    error = run_example("own_policy.py", "serve", "--additional-config.fastgen.recovery=7", code=2)
    assert "fastgen option recovery=7" in error and "policy=" not in error


def test_load_test_asks_for_what_there_is(default_model: Path) -> None:
    """Everything is looked at before the port, and nothing is measured."""
    error = run_example("load_test.py", "--port", "99999", code=2)
    assert "benchmark.py serve: error: --port 99999: cannot be used" in error


@pytest.mark.slow
def test_load_test(tiny_model: Path) -> None:
    small = ["--num-requests", "4", "--output-len", "8", "--threads", "1", "--pool-gib", "0.02"]
    out = run_example("load_test.py", "--model", str(tiny_model), *small)
    assert "| fastgen |" in out
    said = r"^(\w+): kept (.+) of the prompts, ran \d+ requests at a time, .+ output tokens/s$"
    kept = {engine: float(share) for engine, share in re.findall(said, out, re.MULTILINE)}
    assert kept.keys() == {"stock", "fastgen"}
    assert kept["fastgen"] < kept["stock"] == 1
