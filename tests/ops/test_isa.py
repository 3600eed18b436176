import runpy
import sys

import pytest
import torch

from fastgen_vllm import ops


def test_isa_is_the_one_selected(isa: str) -> None:
    assert ops.isa() == isa


def test_unknown_isa_names_the_legal_ones() -> None:
    with pytest.raises(ValueError, match=r"must be one of baseline.*got 'neon'"):
        torch.ops.fastgen.set_isa("neon")


def test_missing_extension_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastgen_vllm._C", None)
    with pytest.raises(ImportError, match="make setup"):
        runpy.run_path(ops.__file__)
