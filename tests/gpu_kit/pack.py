"""``make gpu-kit``: everything for a machine with a GPU that has no network, in one folder.

The kernels are built for it here, with line numbers for the sanitizer; what such a machine lacks
beside torch and pytest is in ``lacking``, for Python 3.12 on x86-64, and is used where needed.
"""

import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from fastgen_vllm.benchmark.facts import commit
from tests.cuda.toolkit import ROOT, find, run
from tests.gpu_kit.steps import BUDGET, STAGES

KIT = ROOT / "build/gpu-kit"
#: Tracked files below these are in it.
CARRIED = ("fastgen_vllm", "configs", "tests", "pyproject.toml")
LACKING = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection")
PYTHON = "3.12"
ARCHITECTURES = "9.0"
MOST_BYTES = 64 * 2**20

SCRIPT = """#!/bin/sh
# Runs every step; the report is in $OUT, or else in build/gpu-report.
cd "$(dirname "$0")" || exit
python=${PYTHON:-python3}
"$python" -c 'import pydantic' 2>/dev/null || export PYTHONPATH="$PWD/lacking"
exec "$python" -m tests.gpu_kit "$@"
"""


def main() -> int:
    """Pack, and say what is in it; 1 if it is too large."""
    begun = time.monotonic()
    shutil.rmtree(KIT, ignore_errors=True)
    copy(KIT)
    _build()
    _add_packages()
    size = sum(path.stat().st_size for path in KIT.rglob("*") if path.is_file())
    seconds = time.monotonic() - begun
    print(f"{KIT.relative_to(ROOT)}: {size / 2**20:.1f} MiB, {seconds:.0f} s")
    print(f"there: {KIT.name}/run.sh, which takes {BUDGET} s at most:")
    for stage in STAGES:
        print("  " + "; ".join(f"{step.name} (up to {step.limit} s)" for step in stage))
    if size > MOST_BYTES:
        print(f"gpu-kit: error: more than {MOST_BYTES / 2**20:.0f} MiB", file=sys.stderr)
        return 1
    return 0


def copy(kit: Path) -> None:
    """Everything but what is built or fetched."""
    tracked = run(["git", "-C", str(ROOT), "ls-files", "-z", *CARRIED]).stdout
    for name in filter(None, tracked.split("\0")):
        there = kit / name
        there.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():  # a link, of which not every way of copying is fond
            shutil.copytree(ROOT / name, there)
        else:
            shutil.copy(ROOT / name, there)
    script = kit / "run.sh"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    (kit / "kit.txt").write_text(f"{commit()}, sm {_architectures()}\n")


def _architectures() -> str:
    return os.environ.get("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)


def _build() -> None:
    settings = {
        "FASTGEN_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": _architectures(),
        "NVCC_APPEND_FLAGS": "-lineinfo",
        "PATH": os.pathsep.join((str(find().nvcc.parent), os.environ["PATH"])),
    }
    folders = [f"--build-lib={KIT}", f"--build-temp={KIT.with_name('gpu-kit-objects')}"]
    _quietly([sys.executable, "setup.py", "build_ext", *folders], settings)


def _add_packages() -> None:
    uv = Path(sys.executable).with_name("uv")
    where = ["--target", str(KIT / "lacking"), "--python-version", PYTHON]
    platform = ["--python-platform", "x86_64-manylinux_2_28", "--no-deps", "--quiet"]
    pinned = [f"{name}=={version(name)}" for name in LACKING]
    _quietly([str(uv), "pip", "install", *where, *platform, *pinned])


def _quietly(command: list[str], settings: dict[str, str] | None = None) -> None:
    """Run; if it fails, end with all that it said."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(settings or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\ngpu-kit: error: {' '.join(command)}")


if __name__ == "__main__":
    sys.exit(main())
