"""The command ``python -m fastgen_vllm.selfcheck``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fastgen_vllm import ops
from fastgen_vllm.benchmark.facts import machine
from fastgen_vllm.selfcheck.correctness import check_ops
from fastgen_vllm.selfcheck.end_to_end import check_engine
from fastgen_vllm.selfcheck.report import EndToEnd, OpCheck, Report, Timing
from fastgen_vllm.selfcheck.speed import time_kernels

PARTS = ("ops", "speed", "engine")


def main(argv: Sequence[str] | None = None) -> int:
    """Check, print, write the report; 1 if something is wrong, 2 for a mistake in the options."""
    parser = _parser()
    options = parser.parse_args(argv)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts={options.parts!r}: {min(unknown)!r} is none of {', '.join(PARTS)}")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if problem := _problem(device):
        parser.error(f"--device={device}: {problem}")
    report = Report(
        machine={**machine(), **_gpu(device)},
        device=str(device),
        ops=_ops(device) if "ops" in parts else [],
        timings=_timings(device) if "speed" in parts else [],
        engines=_engines(device, options.model) if "engine" in parts else [],
    )
    if options.json is not None:
        options.json.write_text(report.model_dump_json(indent=2) + "\n")
        print(f"report: {options.json}")
    print("passed" if report.passed else "FAILED")
    return 0 if report.passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastgen_vllm.selfcheck",
        description="Check FastGen's kernels and engine on this machine, and time them.",
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="default: the GPU, if there is one"
    )
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="which of ops, speed, engine; default: all"
    )
    parser.add_argument("--model", help="for the engine; default: the embedded model")
    parser.add_argument("--json", type=Path, help="write the report here")
    return parser


def _problem(device: torch.device) -> str | None:
    if device.type == "cpu":
        return None
    if not torch.cuda.is_available():
        return "torch sees no GPU; use --device cpu"
    if "cuda" not in ops.device_types():
        return (
            "the kernels were built without CUDA; put nvcc on PATH and install fastgen-vllm again "
            "with FASTGEN_CUDA=1"
        )
    return None


def _gpu(device: torch.device) -> dict[str, object]:
    if device.type == "cpu":
        return {"isa": ops.isa()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }


def _ops(device: torch.device) -> list[OpCheck]:
    checks = []
    for check in check_ops(device):
        checks.append(check)
        print(
            f"{'ok' if check.passed else 'WRONG':6}{check.op:17}{check.dtype:9} {check.cases} "
            f"calls, error {check.worst_error:.1e} (allowed {check.allowed_error:.0e})",
            flush=True,
        )
    return checks


def _timings(device: torch.device) -> list[Timing]:
    timings = []
    for t in time_kernels(device):
        timings.append(t)
        beside = "".join(f", {ratio:.2f} times as fast as {n}" for n, ratio in t.ratios.items())
        print(
            f"{t.kernel}, {t.shape}: {t.microseconds:.0f} µs, {t.gigabytes:.1f} GB/s, "
            f"{t.of_read:.0%} of what the device reads{beside}",
            flush=True,
        )
    return timings


def _engines(device: torch.device, model: str | None) -> list[EndToEnd]:
    from fastgen_vllm.models.embedded import ensure_default_model

    decode_kernels = ["fastgen", "stock"] + (["xformers"] if device.type == "cuda" else [])
    engines = check_engine(model or str(ensure_default_model()), decode_kernels)
    for engine in engines:
        result = engine.error or (
            f"{engine.tokens} tokens, answers that depart from stock's: {len(engine.differences)}"
            + "".join(f" (at token {d.token}, a gap of {d.gap:.3f})" for d in engine.differences)
        )
        verdict = "ok" if engine.passed else "WRONG"
        print(f"{verdict:6}all heads full, {engine.decode_kernel}: {result}")
    return engines


if __name__ == "__main__":
    sys.exit(main())
