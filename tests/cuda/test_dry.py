"""The tests of a GPU, without one: the references in the place of its kernels."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = ("test_device.py", "test_runtime.py", "test_store.py")


def test_tests_of_a_gpu() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, "-k", "not pages_of_16", *(f"tests/gpu/{name}" for name in FILES)],
        cwd=ROOT,
        env={**os.environ, "FASTGEN_GPU_DRY": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "there is no GPU" not in done.stdout
