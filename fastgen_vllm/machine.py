"""The machine below."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path


def cpu_name() -> str:
    """Name of the processor, and how many cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines: Sequence[str] = info.read_text().splitlines() if info.exists() else ()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"
