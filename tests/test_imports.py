"""Which parts of the package may know vLLM and torch."""

import subprocess
import sys

IMPORT_BELOW_VLLM = """
import importlib, pkgutil, sys
import fastgen_vllm

assert "torch" not in sys.modules, "fastgen_vllm imports torch"
import torch  # the kernels in fastgen_vllm._C link to its libraries
may_import_vllm = ("api", "integration", "server", "models", "evaluation", "__main__")
for module in pkgutil.walk_packages(fastgen_vllm.__path__, "fastgen_vllm."):
    if module.name.split(".")[1] in may_import_vllm:
        continue
    importlib.import_module(module.name)
    assert "vllm" not in sys.modules, f"{module.name} imports vllm"
    print(module.name)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_only_the_outer_layers_import_vllm() -> None:
    result = run(IMPORT_BELOW_VLLM)
    assert result.returncode == 0, result.stderr
    assert "fastgen_vllm.config" in result.stdout.split()


def test_command_line_and_option_merging_import_without_vllm() -> None:
    result = run(
        "import sys, fastgen_vllm.server.cli, fastgen_vllm.models.embedded\n"
        "assert not {'vllm', 'torch', 'transformers'} & set(sys.modules)"
    )
    assert result.returncode == 0, result.stderr
