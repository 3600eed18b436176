"""Where CUDA's compiler is: in the packages of requirements/cuda.txt, or else on PATH.

The packages unpack into one folder, site-packages/nvidia/cu13, laid out as nvcc expects its
toolkit to be: nothing has to be merged or set. They bring no host compiler; nvcc takes g++.
"""

import functools
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).parents[2]
Done: TypeAlias = subprocess.CompletedProcess[str]

ARCHITECTURES = (80, 90, 100)
# What the kernels are compiled with, here and in the build.
FLAGS = ("-std=c++17", "-O3")
CSRC = ROOT / "csrc"


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit; `include` is for the host compiler, nvcc finds its own."""

    nvcc: Path
    include: Path

    @property
    def nvdisasm(self) -> Path:
        """The disassembler, which distributions package apart from the compiler."""
        beside = self.nvcc.with_name("nvdisasm")
        found = beside if beside.exists() else shutil.which("nvdisasm")
        if not found:
            raise FileNotFoundError(f"no nvdisasm beside {self.nvcc} or on PATH: {REMEDY}")
        return Path(found)

    def ptx(self, source: Path, architecture: int, *flags: str, csrc: Path = CSRC) -> str:
        """Compile a .cu file to the PTX of one architecture."""
        options = (*FLAGS, *includes(csrc), *flags, f"-arch=compute_{architecture}")
        return run([self.nvcc, *options, "-ptx", source, "-o", "-"]).stdout


def includes(csrc: Path) -> tuple[str, str]:
    """Options by which sources find the kernels' headers."""
    return f"-I{csrc}", f"-I{csrc / 'include'}"


REMEDY = "pip install -r requirements/cuda.txt, or put a CUDA 13 toolkit on PATH"


@functools.cache
def find() -> Toolkit:
    """Return the toolkit that tests and the compile gate use."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec and spec.submodule_search_locations) or ():
        root = Path(folder) / "cu13"
        if (root / "bin/nvcc").exists():
            return Toolkit(root / "bin/nvcc", root / "include")
    on_path = shutil.which("nvcc")
    if on_path:
        return _of_nvcc(Path(on_path))
    raise FileNotFoundError(f"no nvcc: {REMEDY}")


def demangle(names: list[str]) -> dict[str, str]:
    """Map mangled names to C++ ones: without parameters, return type and anonymous namespaces."""
    if not names:
        return {}
    lines = run(["c++filt", "--no-params"], "\n".join(names)).stdout.splitlines()
    return {
        name: line.replace("(anonymous namespace)::", "").removeprefix("void ")
        for name, line in zip(names, lines, strict=True)
    }


def run(command: Sequence[str | Path], text: str | None = None) -> Done:
    """Run a command and capture what it prints; if it fails, raise with all that it said."""
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        raise RuntimeError(f"{said}\nfrom {' '.join(map(str, command))}")
    return done


def _of_nvcc(nvcc: Path) -> Toolkit:
    # It may be a link or a wrapper script: a dry run tells where its toolkit is.
    command: list[str | Path] = [nvcc, "--dryrun", "-E", "-x", "cu", "/dev/null"]
    settings = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    top = re.search(r" TOP=(.+)", settings)
    include = re.search(r'INCLUDES="-I(.+?)"', settings)
    if not (top and include):
        raise FileNotFoundError(f"{nvcc} does not say where its toolkit is: {REMEDY}")
    return Toolkit(Path(top[1].strip()).resolve() / "bin/nvcc", Path(include[1].strip()).resolve())
