"""The training example: it goes on where it was, and the engine computes what it trained."""

import importlib.util
import json
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from fastgen_vllm.integration.plugin import register
from tests.evaluation.tiny import MANUAL
from tests.integration.engine import engine_config, generate

SCRIPT = Path(__file__).parents[2] / "examples" / "train_lckv.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_lckv", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_twins_have_as_many_weights(script: ModuleType) -> None:
    options = Namespace(forward_passes=7, backward_passes=2)
    counts = {
        sum(weight.numel() for weight in script.Model(script.config_of(name, options)).parameters())
        for name in script.TYPES
    }
    assert len(counts) == 1


def test_training_resumes_and_the_engine_computes_the_same(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Namespace(out=tmp_path, steps=1, forward_passes=7, backward_passes=2)
    tokenizer = script.train_tokenizer(tmp_path, [MANUAL])
    tokens = torch.tensor(tokenizer.encode(MANUAL[:40_000]).ids)
    train, held_out = tokens[:-1100], tokens[-1100:]
    first = script.train_model("lckv", options, train, held_out)
    options.steps = 2
    second = script.train_model("lckv", options, train, held_out)
    assert "step 1 of 2" in capsys.readouterr().out
    assert list(second) == [1, 2, 3, 5, 9] and second != first
    folder = tmp_path / "lckv"
    assert json.loads((folder / "perplexity.json").read_text())["9"] == second[9]

    model = script.Model(script.config_of("lckv", options))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    prompt = tokens[:60].tolist()
    with torch.no_grad():
        expected = model(tokens[None, :60])[0, -1].log_softmax(-1)
    register()
    config = engine_config(folder, None, max_model_len=128, kv_cache_memory_bytes=2**24)
    (finished,), _ = generate(config, [prompt], max_tokens=1, logprobs=5)
    for token, logprob in finished.logprobs[0].items():
        assert logprob == pytest.approx(float(expected[token]), abs=1e-4)
