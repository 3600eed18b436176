"""Small models with tokenizers, for tests that run the evaluation itself."""

from pathlib import Path

import pytest

# Imported where they are used: most tests of this directory need no model.


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a tokenizer and a chat template."""
    from tests.evaluation.tiny import save_tiny_chat

    return save_tiny_chat(tmp_path_factory.mktemp("models") / "chat")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a tokenizer and no chat template."""
    from tests.evaluation.tiny import save_tiny_base

    return save_tiny_base(tmp_path_factory.mktemp("models") / "base")
