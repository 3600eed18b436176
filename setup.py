"""Build the kernels; every other fact about the package is in pyproject.toml.

CUDA kernels are built where nvcc is on PATH and torch is a CUDA build; FASTGEN_CUDA=1 builds them
for any torch (the binary needs none of its CUDA libraries), FASTGEN_CUDA=0 leaves them out.
TORCH_CUDA_ARCH_LIST chooses architectures. FASTGEN_SANITIZE=1 builds for tests/ops/fuzz.py: what
reads or writes out of bounds, or is undefined, ends the process.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent
INCLUDE = [str(ROOT / "csrc"), str(ROOT / "csrc" / "include")]

# The stable ABI: one binary for torch 2.11 and later, and for Python 3.10 and later.
MACROS = [("TORCH_TARGET_VERSION", "0x020b000000000000"), ("Py_LIMITED_API", "0x030A0000")]


def sources(*patterns: str) -> list[str]:
    """Files of the patterns, relative to this one."""
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


class Build(BuildExtension):
    """Adds the objects that nvcc makes of csrc/cuda/*.cu."""

    def build_extensions(self) -> None:
        wanted = os.environ.get("FASTGEN_CUDA", "1" if torch.version.cuda else "0") != "0"
        nvcc = shutil.which("nvcc")
        if wanted and nvcc:
            self.add_cuda(self.extensions[0], nvcc)
        else:
            why = "no nvcc on PATH" if wanted else "torch has no CUDA, or FASTGEN_CUDA is 0"
            print(f"fastgen_vllm: CUDA kernels are not built: {why}")
        super().build_extensions()

    def add_cuda(self, extension: CppExtension, nvcc: str) -> None:
        command = [nvcc, "--dryrun", "-E", "-x", "cu", "/dev/null"]
        settings = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        include = re.search(r'INCLUDES="-I(.+?)"', settings)
        assert include, settings
        headers = Path(include[1].strip())
        objects = Path(self.build_temp, "cuda")
        objects.mkdir(parents=True, exist_ok=True)
        flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", *architectures()]
        for source in sources("csrc/cuda/*.cu"):
            target = str(objects / Path(source).with_suffix(".o").name)
            includes = [f"-I{path}" for path in INCLUDE]
            subprocess.check_call([nvcc, *flags, *includes, "-c", source, "-o", target])
            extension.extra_objects.append(target)
        extension.sources += sources("csrc/cuda/*.cpp")
        extension.include_dirs.append(str(headers))
        extension.define_macros.append(("FASTGEN_CUDA", "1"))
        extension.extra_objects.append(str(headers.parent / "lib" / "libcudart_static.a"))
        extension.extra_link_args += ["-lrt", "-ldl", "-lpthread"]


def architectures() -> list[str]:
    """Options of nvcc, from a list like "8.0;9.0a+PTX"."""
    flags = []
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0;9.0;10.0+PTX")
    for each in chosen.replace(" ", ";").split(";"):
        number = each.removesuffix("+PTX").replace(".", "")
        code = f"[sm_{number},compute_{number}]" if each.endswith("+PTX") else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code={code}")
    return flags


FLAGS = ["-std=c++20", "-fvisibility=hidden", "-Wall"]
# Without checks of pointers that AddressSanitizer makes as well: they compile four times as long.
SANITIZERS = [
    *("-fsanitize=address,undefined", "-fno-sanitize=null,object-size,pointer-overflow"),
    "-fno-sanitize-recover=all",
]
sanitize = os.environ.get("FASTGEN_SANITIZE", "0") != "0"

kernels = CppExtension(
    "fastgen_vllm._C",
    sources("csrc/*.cpp", "csrc/ops/*.cpp", "csrc/cpu/*.cpp"),
    include_dirs=list(INCLUDE),
    define_macros=list(MACROS),
    extra_compile_args={
        "cxx": [*FLAGS, *(["-O1", "-g", *SANITIZERS] if sanitize else ["-O3", "-g0"])]
    },
    extra_link_args=SANITIZERS if sanitize else [],
    py_limited_api=True,
)

setup(
    ext_modules=[kernels],
    cmdclass={"build_ext": Build.with_options(no_python_abi_suffix=False)},
)
