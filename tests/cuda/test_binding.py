"""The extension with the CUDA ops in it builds beside a CPU build of torch, and loads."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

from tests.cuda import toolkit
from tests.cuda.structs import CALLS

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


def test_nothing_is_needed_that_torch_2_11_lacks(extension: Path) -> None:
    """What its headers declare for that version is what its libraries have."""
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", extension], capture_output=True, text=True, check=True
    ).stdout
    needed = set(re.findall(r" U ((?:aoti_)?torch_\w+)$", listing, re.MULTILINE))
    assert "torch_parallel_for" in needed
    old, new = (declared_for(version) for version in (0x020B << 48, 0x020D << 48))
    assert "torch_exception_get_what" in new - old, "the headers tell versions apart"
    assert needed <= old


def declared_for(version: int) -> set[str]:
    """Names in the headers of torch's stable ABI, for extensions that target a version."""
    headers = ["stable/c/shim.h", "inductor/aoti_torch/c/shim.h"]
    source = "".join(f"#include <torch/csrc/{header}>\n" for header in headers)
    command = ["g++", "-std=c++20", "-E", "-x", "c++", f"-DTORCH_TARGET_VERSION={version:#x}"]
    command += [f"-I{path}" for path in include_paths()]
    done = subprocess.run([*command, "-"], input=source, capture_output=True, text=True, check=True)
    return set(re.findall(r"\b(?:aoti_)?torch_\w+(?=\s*\()", done.stdout))


def test_nothing_of_torchs_cuda_libraries_is_needed(extension: Path) -> None:
    listing = subprocess.run(["ldd", extension], capture_output=True, text=True, check=True).stdout
    assert "cuda" not in listing
