"""What the examples speak to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.running import FLAGS, Server, served


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, default_model: Path) -> Iterator[Server]:
    """A server as the examples expect it, but small."""
    with served(tmp_path_factory.mktemp("server") / "log", *FLAGS) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a tokenizer, quickly loaded."""
    from tests.evaluation.tiny import save_tiny_base

    return save_tiny_base(tmp_path_factory.mktemp("models") / "base")
