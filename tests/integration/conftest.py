"""Models and vLLM's plugin registration for tests that run engines."""

from pathlib import Path

import pytest

from fastgen_vllm.integration.plugin import register
from tests.integration.tiny import (
    save_tiny_llama,
    save_tiny_mistral,
    save_tiny_qwen2,
    save_tiny_qwen3,
)


@pytest.fixture(scope="session", autouse=True)
def plugin() -> None:
    """Register what vLLM would register through the entry point."""
    register()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def tiny_mha(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "mha"
    return save_tiny_llama(path, num_key_value_heads=4)


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_qwen2(tmp_path_factory.mktemp("models") / "qwen2")


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_qwen3(tmp_path_factory.mktemp("models") / "qwen3")


@pytest.fixture(scope="session")
def tiny_mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_mistral(tmp_path_factory.mktemp("models") / "mistral")
