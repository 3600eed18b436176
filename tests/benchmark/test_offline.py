"""The script itself on a tiny model: from options to table, JSON and plot."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.tiny import tiny_tokenizer
from tests.models.lckv import save_lckv

ROOT = Path(__file__).parents[2]
BLOCK_BYTES = 2 * 3 * 2 * 32 * 32 * 2  # K and V, layers, KV heads, slots, head size, bf16


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmark.py", *arguments, "--enforce-eager"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_two_engines_are_compared(tiny_model: Path, quarter: str, tmp_path: Path) -> None:
    """Stock has room for three requests at a time; compressed ones leave room for more."""
    pool = str(2.5 * 12 * BLOCK_BYTES / 2**30)
    done = benchmark(
        *(
            "offline",
            "--engines",
            "fastgen,stock",
            "--fastgen",
            quarter,
            "--model",
            str(tiny_model),
        ),
        *("--pool-gib", pool, "--num-requests", "6", "--prompt-len", "256", "--output-len", "64"),
        *("--threads", "1", "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    facts = found["facts"]
    assert facts["engines"] == ["fastgen", "stock"]
    assert facts["fastgen"] == {"fastgen": quarter}
    assert facts["threads"] == {"fastgen": 1, "stock": 1}
    assert (facts["prompt_len"], facts["output_len"], facts["num_requests"]) == (256, 64, 6)
    assert {"cpu", "cores", "vllm", "torch", "fastgen_vllm", "commit", "date"} <= facts.keys()
    ours, stock = found["median"]["fastgen"], found["median"]["stock"]
    assert list(found["median"]) == ["stock", "fastgen"]
    assert stock["kept_share"] == 1 and ours["kept_share"] == pytest.approx(0.25, abs=0.02)
    assert stock["peak_running"] <= 3 < ours["peak_running"]
    assert (stock["profiling_seconds"], stock["compaction_seconds"]) == (0, 0)
    assert ours["profiling_seconds"] > 0 and ours["compaction_seconds"] > 0
    for side in (ours, stock):
        assert side["output_throughput"] == pytest.approx(6 * 64 / side["seconds"])
        assert 0 < side["prefill_seconds"] < side["seconds"]
        assert 0 < side["decode_step_ms"] < 1e3 * side["seconds"]
        assert 0 < side["ttft_ms"] < 1e3 * side["seconds"]
        assert 0 < side["tpot_ms"] < 1e3 * side["seconds"]
        assert side["peak_blocks"] <= 29
    for row in found["rounds"]:
        timeline = row["timeline"]
        assert max(timeline["blocks"]) == row["peak_blocks"]
        assert max(timeline["running"]) == row["peak_running"]
        assert timeline["seconds"] == sorted(timeline["seconds"])
    assert "- threads: " in done.stdout and "| fastgen |" in done.stdout
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_shared_beginning_is_computed_and_held_once(
    tiny_model: Path, quarter: str, tmp_path: Path
) -> None:
    """By both sides; compressed, each request holds a part of what it has itself."""
    done = benchmark(
        *("offline", "--workload", "shared-prefix", "--shared-len", "640", "--model"),
        *(str(tiny_model), "--fastgen", quarter, "--pool-gib", "0.01", "--num-requests", "4"),
        *("--prompt-len", "768", "--output-len", "64", "--threads", "1"),
        *("--when", "always", "--json", str(tmp_path / "a.json")),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    facts = found["facts"]
    assert (facts["workload"], facts["shared_len"]) == ("shared-prefix", 640)
    assert facts["when"] == {"fastgen": "always"}
    assert facts["prefix_caching"] is True
    ours, stock = found["median"]["fastgen"], found["median"]["stock"]
    assert stock["computed_tokens"] == ours["computed_tokens"] == 768 + 3 * 128
    assert stock["peak_blocks"] == 20 + 4 * 6
    assert ours["peak_blocks"] <= 20 + 4 * 4


@pytest.mark.parametrize("when", ["short", "always"])
def test_a_chat_finds_what_was_said(
    when: str, tiny_model: Path, quarter: str, tmp_path: Path
) -> None:
    """But an answer that was generated after the request was compacted is computed again."""
    done = benchmark(
        *("offline", "--workload", "chat", "--turns", "3", "--turn-len", "20", "--model"),
        *(str(tiny_model), "--fastgen", quarter, "--pool-gib", "0.01", "--num-requests", "2"),
        *("--prompt-len", "256", "--output-len", "60", "--threads", "1", "--when", when),
        *("--json", str(tmp_path / "a.json")),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["facts"]["turns"], found["facts"]["turn_len"]) == (3, 20)
    ours, stock = found["median"]["fastgen"], found["median"]["stock"]
    # Turns of 336 and 416 tokens, of which the blocks up to 288 and 384 are found.
    assert stock["computed_tokens"] == 2 * (256 + (336 - 288) + (416 - 384))
    assert stock["output_throughput"] == pytest.approx(2 * 3 * 60 / stock["seconds"])
    if when == "short":
        assert ours["computed_tokens"] == stock["computed_tokens"]
        assert ours["compaction_seconds"] == 0
    else:
        assert ours["computed_tokens"] > stock["computed_tokens"]
        assert ours["compaction_seconds"] > 0


def test_two_models_are_compared(tmp_path: Path) -> None:
    """In one pool a layer-condensed model has room for as many more as it has fewer KV layers."""
    for name, layers in (("plain", "0_1_2_3_4_5_6"), ("lckv", "0_5_5_5_5_5_6")):
        save_lckv(tmp_path / name, layers)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    plain, lckv = (f"stock@{tmp_path / name}" for name in ("plain", "lckv"))
    pool = str(35 * 2 * 7 * 2 * 32 * 32 * 4 / 2**30)  # blocks, K and V, layers, heads, ..., float32
    done = benchmark(
        *("offline", "--engines", f"{plain},{lckv}", "--pool-gib", pool, "--dtype", "float32"),
        *("--num-requests", "8", "--prompt-len", "256", "--output-len", "64", "--threads", "1"),
        *("--json", str(tmp_path / "a.json")),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["facts"]["model"] == {e: e.removeprefix("stock@") for e in (plain, lckv)}
    assert found["median"][plain]["peak_running"] == 4
    assert found["median"][lckv]["peak_running"] == 8
    assert list(found["median"]) == list(found["ratio"]) == [plain, lckv]


def test_steps_are_measured_at_every_size(tiny_model: Path, quarter: str, tmp_path: Path) -> None:
    done = benchmark(
        *("steps", "--engines", "stock,fastgen", "--fastgen", quarter, "--model", str(tiny_model)),
        *("--contexts", "384,512", "--running", "2,3", "--steps", "16", "--threads", "1"),
        *("--json", str(tmp_path / "a.json")),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    loads = ["context=384,running=2", "context=512,running=2", "context=384,running=3"]
    for engine in ("stock", "fastgen"):
        assert list(found["median"][engine]) == loads
    for load in loads:
        ours, stock = found["median"]["fastgen"][load], found["median"]["stock"][load]
        assert stock["kept_tokens"] == stock["prompt_tokens"] == ours["prompt_tokens"]
        assert ours["kept_tokens"] == pytest.approx(0.25 * stock["prompt_tokens"], rel=0.05)
        assert ours["blocks"] < stock["blocks"]
        assert ours["decode_step_ms"] > 0 and stock["decode_step_ms"] > 0


@pytest.mark.slow
def test_a_side_that_fails_is_told_in_lines(tiny_model: Path, tmp_path: Path) -> None:
    """Its weights are missing, which only the engine finds out."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_model.iterdir():
        if not file.name.endswith(".safetensors"):
            (broken / file.name).symlink_to(file)
    done = benchmark(
        *("offline", "--engines", "stock", "--model", str(broken), "--prompt-len", "64"),
        *("--output-len", "8", "--json", str(tmp_path / "a.json")),
    )
    assert done.returncode == 1
    assert "benchmark.py offline: error: engine stock failed:\n  " in done.stderr
    assert "model weights" in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.endswith("No round was finished.\n")
    assert not (tmp_path / "a.json").exists()
