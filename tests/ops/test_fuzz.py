"""Random calls of the CPU's ops under AddressSanitizer and UBSan."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Takes the kernels from another build of the extension. Torch's libraries must be there first.
RUN = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("fastgen_vllm._C", sys.argv.pop(1))
sys.modules["fastgen_vllm._C"] = importlib.util.module_from_spec(spec)
from tests.ops import fuzz
sys.exit(fuzz.main())
"""


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension with sanitizers."""
    directory = tmp_path_factory.mktemp("sanitized")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "setup.py", "build_ext"]
    subprocess.run(
        [*command, f"--build-lib={directory}", f"--build-temp={directory}"],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "FASTGEN_SANITIZE": "1", "FASTGEN_CUDA": "0"},
        check=True,
        capture_output=True,
    )
    (file,) = directory.glob("fastgen_vllm/_C*.so")
    return file


def library(name: str) -> str:
    """Path of one of g++'s libraries."""
    command = ["g++", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def fuzz(extension: Path, cases: int, seed: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", RUN, extension, f"--cases={cases}", f"--seed={seed}"],
        cwd=ROOT,
        env={
            **os.environ,
            "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, "\n".join(result.stderr.splitlines()[-60:])
    assert f"{cases} cases" in result.stdout


def test_random_calls(extension: Path) -> None:
    fuzz(extension, cases=200, seed=0)


@pytest.mark.slow
def test_many_random_calls(extension: Path) -> None:
    fuzz(extension, cases=20_000, seed=1_000_000)
