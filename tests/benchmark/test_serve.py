"""Driving servers: what is read from them, and a whole run on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastgen_vllm.benchmark.client import metrics_of
from fastgen_vllm.benchmark.engines import Engine
from fastgen_vllm.benchmark.process import MeasurementFailed
from fastgen_vllm.benchmark.results import Timeline
from fastgen_vllm.benchmark.serve import free_port
from fastgen_vllm.benchmark.server import Counters, Server, Watch

ROOT = Path(__file__).parents[2]
METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a b"} 3.0
vllm:num_preemptions_total{engine="0",model_name="a b"} 2.0
vllm:num_preemptions_created{engine="0",model_name="a b"} 1.7e+09
fastgen_kept_share_bucket{engine="0",le="0.5"} 4.0
fastgen_kept_share_count{engine="0"} 4.0
fastgen_kept_share_sum{engine="0"} 1.5
fastgen_profiling_seconds_total{engine="0"} 0.25
"""


def test_counters_are_read_from_the_metrics() -> None:
    counters = Counters.parse(METRICS)
    assert counters == Counters(
        running=3,
        preemptions=2,
        kept_sum=1.5,
        kept_count=4,
        profiling_seconds=0.25,
        compaction_seconds=0,
    )


def test_only_the_time_with_requests_is_shown(tmp_path: Path) -> None:
    """While the client starts, nothing runs."""
    engine = Engine(name="stock")
    with Server(engine, str(tmp_path), 1, ["--help"], {}) as server:
        watch = Watch(server)
    watch.seconds, watch.running = [7.0, 8.0, 9.5, 10.0, 11.0], [0, 2, 0, 1, 0]
    assert watch.busy() == Timeline(seconds=[0, 1.5, 2], running=[2, 0, 1])
    watch.running = [0] * 5
    assert watch.busy() == Timeline(seconds=[], running=[])


def test_numbers_of_the_client_keep_their_names() -> None:
    found = metrics_of(
        {"duration": 2, "median_ttft_ms": 5.5, "median_tpot_ms": 1.5, "p90_tpot_ms": 2.5,
         "date": "20261123", "request_goodput": None, "request_rate": "inf"}
    )  # fmt: skip
    assert found == {
        "duration": 2, "median_ttft_ms": 5.5, "median_tpot_ms": 1.5, "p90_tpot_ms": 2.5,
        "ttft_ms": 5.5, "tpot_ms": 1.5, "seconds": 2,
    }  # fmt: skip


def test_a_server_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    engine = Engine(name="fastgen", fastgen="balanced")
    server = Server(engine, str(tmp_path), free_port(None), ["--block-size", "seven"], {})
    with server, pytest.raises(MeasurementFailed) as caught:
        server.wait()
    assert "seven" in str(caught.value) and "Traceback" not in str(caught.value)


def serve(model: Path, tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Run the command; return the JSON and what it printed."""
    command = [
        *(sys.executable, "benchmark.py", "serve", "--model", str(model), "--enforce-eager"),
        *("--pool-gib", "0.01", "--threads", "1", "--num-requests", "4", "--prompt-len", "96"),
        *("--output-len", "8", "--json", str(tmp_path / "out.json")),
        *arguments,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "out.json").read_text()), done.stdout


@pytest.mark.slow
def test_a_server_is_driven_by_the_client(tiny_model: Path, quarter: str, tmp_path: Path) -> None:
    """Short of nothing: server, vLLM's client with flags passed on, and metrics."""
    flags = ["--metric-percentiles", "90", "--goodput", "ttft:100000"]
    found, out = serve(tiny_model, tmp_path, "--engines", "fastgen", "--fastgen", quarter, *flags)
    assert found["facts"]["client"] == flags
    assert found["facts"]["threads"] == {"fastgen": 1}
    assert found["facts"]["dataset"] == "Python manual"
    (row,) = found["rounds"]
    assert (row["completed"], row["failed"]) == (4, 0)
    assert row["total_output_tokens"] == 4 * 8
    assert 0 < row["total_input_tokens"] <= 4 * 96
    assert row["p90_ttft_ms"] >= row["ttft_ms"] > 0
    assert row["request_goodput"] > 0
    assert row["kept_share"] == pytest.approx(0.25, abs=0.05)
    assert row["profiling_seconds"] > 0
    assert found["median"]["fastgen"]["ttft_ms"] == row["ttft_ms"]
    assert "| fastgen |" in out and "p99 TTFT" not in out


@pytest.mark.slow
def test_servers_are_compared_under_several_loads(
    tiny_model: Path, quarter: str, tmp_path: Path
) -> None:
    """With vLLM's own server, which knows nothing of FastGen, on one side."""
    plot = tmp_path / "out.html"
    found, _ = serve(
        *(tiny_model, tmp_path, "--engines", "fastgen,bare", "--fastgen", quarter),
        *("--concurrency", "1,4", "--plot", str(plot)),
    )
    rows = [(row["engine"], row["concurrency"]) for row in found["rounds"]]
    assert rows == [("fastgen", 1), ("fastgen", 4), ("bare", 1), ("bare", 4)]
    assert all(row["max_concurrency"] == row["concurrency"] for row in found["rounds"])
    assert found["facts"]["threads"] == {"fastgen": 1, "bare": 1}
    sides = [found["median"][engine]["concurrency=4"] for engine in ("fastgen", "bare")]
    ratio = found["ratio"]["bare"]["concurrency=4"]["ttft_ms"]
    assert ratio == pytest.approx(sides[1]["ttft_ms"] / sides[0]["ttft_ms"])
    assert sides[0]["kept_share"] < 1 == sides[1]["kept_share"]
    assert "Throughput" in plot.read_text()
