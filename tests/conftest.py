"""Fixtures that every test may use."""

from pathlib import Path

import pytest

from fastgen_vllm.models.embedded import ensure_default_model


@pytest.fixture(scope="session")
def default_model() -> Path:
    """Directory of the embedded model, converted on first use and kept in the user's cache."""
    return ensure_default_model()
