"""The extension with the CUDA ops in it builds beside a CPU build of torch, and loads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda import toolkit
from tests.cuda.emulated import CALLS

LOADS = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("_C", sys.argv[1])
importlib.util.module_from_spec(spec)
for op in sys.argv[2:]:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastgen::{op}", "CUDA"), op
assert torch.ops.fastgen.has_cuda()
"""


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("extension")
    folders = [
        str(toolkit.find().nvcc.parent),
        str(Path(sys.executable).parent),
        os.environ["PATH"],
    ]
    subprocess.run(
        [
            sys.executable,
            "setup.py",
            "build_ext",
            f"--build-lib={directory}",
            f"--build-temp={directory}",
        ],
        cwd=toolkit.ROOT,
        env={
            **os.environ,
            "PATH": os.pathsep.join(folders),
            "FASTGEN_CUDA": "1",
            "TORCH_CUDA_ARCH_LIST": "9.0+PTX",
        },
        check=True,
        capture_output=True,
    )
    (file,) = directory.glob("fastgen_vllm/_C*.so")
    return file


def test_ops_have_cuda_kernels(extension: Path) -> None:
    subprocess.run([sys.executable, "-c", LOADS, extension, *CALLS], check=True)


def test_nothing_of_torchs_cuda_libraries_is_needed(extension: Path) -> None:
    listing = subprocess.run(["ldd", extension], capture_output=True, text=True, check=True).stdout
    assert "cuda" not in listing
