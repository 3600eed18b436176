"""Everything that a GPU can tell, within nine minutes: ``python -m tests.gpu_kit``.

Needs torch, pytest, hypothesis and pydantic, and no vLLM. What each step found is in report.json,
report.md and log.txt, folder ``$OUT`` or else ``build/gpu-report``, as soon as its stage is over.
``FASTGEN_GPU_DRY=1`` runs every step on the CPU, with the references in the place of the kernels.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

import torch

from fastgen_vllm.benchmark.facts import machine
from tests.gpu.device import DRY, is_missing
from tests.gpu_kit.report import Report
from tests.gpu_kit.results import read
from tests.gpu_kit.run import Log, run_stage
from tests.gpu_kit.steps import BUDGET, STAGES

#: Where toolkits put their tools, if they are not on PATH.
TOOLS = ("/usr/local/cuda/bin", *glob("/opt/nvidia/nsight-compute/*"))


def main(arguments: Sequence[str]) -> int:
    """Run all steps; 1 if something is wrong, 2 if there is no GPU."""
    options = _parser().parse_args(arguments)
    if (reason := is_missing()) is not None:
        print(f"gpu-kit: error: {reason}; FASTGEN_GPU_DRY=1 runs without", file=sys.stderr)
        return 2
    os.environ["PATH"] = os.pathsep.join((os.environ["PATH"], *TOOLS))
    options.out.mkdir(parents=True, exist_ok=True)
    report = Report(machine=_machine(), dry=DRY, steps=[])
    end = time.monotonic() + options.seconds
    with Log(options.out / "log.txt") as log:
        for stage in STAGES:
            chosen = [step for step in stage if not options.only or step.name in options.only]
            for ran, lines in run_stage(chosen, log, end, dry=DRY):
                report.steps.append(read(ran, lines))
            report.write(options.out)
    print((options.out / "report.md").read_text())
    print(f"{options.out}: report.md, report.json, log.txt")
    return 0 if all(ran.end == "passed" for ran in report.steps) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu-kit", description="What a GPU can tell of FastGen.")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("OUT", "build/gpu-report")),
        help="folder for the report; default: $OUT, or build/gpu-report",
    )
    parser.add_argument("--seconds", type=float, default=BUDGET, help="for all steps")
    names = [step.name for stage in STAGES for step in stage]
    parser.add_argument("--only", nargs="+", choices=names, help="some steps; default: all")
    return parser


def _machine() -> dict[str, Any]:
    facts = {name: value for name, value in machine().items() if value is not None}
    kit = Path("kit.txt")  # in the packed kit, which is no checkout
    if kit.exists():
        facts["kit"] = kit.read_text().strip()
    facts["torch"] = torch.__version__
    facts["python"] = sys.version.split()[0]
    if not DRY:
        properties = torch.cuda.get_device_properties(0)
        facts["gpu"] = properties.name
        facts["multiprocessors"] = properties.multi_processor_count
    facts["tools"] = [t for t in ("compute-sanitizer", "ncu") if shutil.which(t)]
    return facts


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
