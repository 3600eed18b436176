"""Build the kernels; every other fact about the package is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent

# The stable ABI: one binary for torch 2.13 and later, and for Python 3.10 and later.
MACROS = [("TORCH_TARGET_VERSION", "0x020d000000000000"), ("Py_LIMITED_API", "0x030A0000")]

kernels = CppExtension(
    "fastgen_vllm._C",
    ["csrc/bindings.cpp", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cpu/*.cpp"))],
    include_dirs=[str(ROOT / "csrc"), str(ROOT / "csrc" / "include")],
    define_macros=MACROS,
    extra_compile_args={"cxx": ["-O3", "-g0", "-std=c++20", "-fvisibility=hidden", "-Wall"]},
    py_limited_api=True,
)

setup(
    ext_modules=[kernels],
    cmdclass={"build_ext": BuildExtension.with_options(no_python_abi_suffix=False)},
)
