"""The model that all of these tests serve."""

from pathlib import Path

import pytest

from fastgen_vllm.integration.plugin import register
from tests.integration.tiny import save_tiny_llama


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    register()
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "llama")
