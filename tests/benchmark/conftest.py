"""Models for tests of the load test, and rounds made by hand."""

import json
from pathlib import Path

import pytest

SHAPE = dict(
    max_position_embeddings=2048,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
)


@pytest.fixture
def described_model(tmp_path: Path) -> Path:
    """A directory that only describes a model: enough for everything before measuring."""
    path = tmp_path / "described"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(SHAPE))
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a tokenizer."""
    from tests.evaluation.tiny import save_tiny_base

    return save_tiny_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def quarter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Options that compress prompts of any length, as the preset of that name does long ones."""
    path = tmp_path_factory.mktemp("options") / "quarter.yaml"
    path.write_text("policy: coverage\nkeep: 0.25\n")
    return str(path)
