"""The images' recipes; `make image-check` builds the CPU's and tries it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_hadolint_has_no_complaint(name: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, f"docker/{name}"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def test_the_check_is_a_shell_script() -> None:
    subprocess.run(["bash", "-n", ROOT / "docker/check.sh"], check=True, timeout=60)
    assert (ROOT / "docker/check.sh").stat().st_mode & 0o111


def test_the_context_holds_what_the_package_is_built_from() -> None:
    """Everything that `.dockerignore` lets in exists, and pyproject.toml's files are among it."""
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"]
    assert all((ROOT / name).exists() for name in kept)
    assert {"pyproject.toml", "README.md", "LICENSE", "setup.py", "configs"} <= set(kept)


def test_the_cuda_image_is_of_the_pinned_vllm() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (pinned,) = [need for need in extras["cuda"] if need.startswith("vllm==")]
    version = pinned.removeprefix("vllm==")
    assert f"vllm/vllm-openai:v{version}\n" in (ROOT / "docker/Dockerfile").read_text()
