"""The circumstances of a comparison."""

import argparse
import os
import subprocess
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from fastgen_vllm.benchmark.engines import Engine
from fastgen_vllm.benchmark.model import Models
from fastgen_vllm.benchmark.results import Row
from fastgen_vllm.machine import cpu_name
from fastgen_vllm.versions import VLLM_DISTRIBUTIONS, installed_version

_ROOT = Path(__file__).parents[2]


def circumstances(
    options: argparse.Namespace, engines: Sequence[Engine], models: Models, **more: Any
) -> dict[str, Any]:
    """Everything that a reader needs to repeat the measurement; ``more`` is the command's own."""
    return {
        "command": options.command,
        **machine(),
        "model": _names(models),
        "dtype": options.dtype,
        "enforce_eager": options.enforce_eager,
        "engines": [engine.name for engine in engines],
        "fastgen": {engine.name: engine.fastgen for engine in engines if engine.fastgen},
        "when": {engine.name: engine.chosen_when for engine in engines if engine.fastgen},
        "rounds": options.rounds,
        "seed": options.seed,
        **more,
    }


def _names(models: Models) -> str | dict[str, str]:
    """The model's name, or that of every side if they differ."""
    names = {engine: model.name for engine, model in models.items()}
    distinct = list(dict.fromkeys(names.values()))
    return names if len(distinct) > 1 else distinct[0]


def machine() -> dict[str, Any]:
    """Where, when and with which software."""
    name, _, _ = cpu_name().rpartition(", ")
    return {
        "date": date.today().isoformat(),
        "cpu": name,
        "cores": len(os.sched_getaffinity(0)),
        "vllm": installed_version(*VLLM_DISTRIBUTIONS),
        "torch": installed_version("torch"),
        "fastgen_vllm": installed_version("fastgen-vllm"),
        "commit": commit(),
    }


def threads_of(rows: Sequence[Row]) -> dict[str, int]:
    """Threads that each side was seen to compute with."""
    return {
        row.engine: int(row.sample.metrics["threads"])
        for row in rows
        if "threads" in row.sample.metrics
    }


def commit(root: Path = _ROOT) -> str | None:
    """The commit of this checkout as git describes it, None if the package is installed."""
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--tags"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
