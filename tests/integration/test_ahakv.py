"""AhaKV on the engine keeps what the evaluation's formula keeps, which shares no code with it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.evaluation import ahakv
from fastgen_vllm.evaluation.dense import DenseModel, Prefill
from fastgen_vllm.profile.observation import entropy_sharpness
from tests.integration.engine import Engine, engine_config
from tests.integration.test_determinism import kept
from tests.integration.tiny import random_prompts

LENGTH = 400
SHARES = (0.1, 0.25, 0.5, 0.9)


def positions(keep: Tensor) -> list[list[list[int]]]:
    return [[head.nonzero()[:, 0].tolist() for head in layer] for layer in keep]


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    return random_prompts([LENGTH], seed=6)[0]


@pytest.fixture(scope="module")
def prefill(tiny_llama: Path, prompt: list[int]) -> Prefill:
    return DenseModel(tiny_llama).prefill(prompt)


@pytest.fixture(scope="module", params=[4096, 80], ids=["whole", "chunks"])
def found(request: Any, tiny_llama: Path, prompt: list[int]) -> dict[float, Any]:
    """What is kept at every share, by requests of a server that is configured otherwise."""
    config = FastGenConfig(force=True, min_answer=1, observe="replay")
    options = dict(skip_tokenizer_init=True, max_num_batched_tokens=request.param)
    engine = Engine(engine_config(tiny_llama, config, **options))
    held = {}
    try:
        for share in SHARES:
            arguments = {"fastgen_policy": "ahakv", "fastgen_keep": share}
            request_id = engine.add(prompt, max_tokens=4, detokenize=False, extra_args=arguments)
            layers = kept(engine, request_id)
            held[share] = [[[p for p in head if p < LENGTH] for head in row] for row in layers]
            engine.run()
    finally:
        engine.close()
    return held


@pytest.mark.parametrize("share", SHARES)
def test_it_keeps_what_the_formula_keeps(
    found: Any, prefill: Prefill, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one sharpness for all queries, as ours is."""
    one = entropy_sharpness(LENGTH - 15.5, share * LENGTH) / 32**0.5
    monkeypatch.setattr(
        ahakv, "sharpness", lambda visible, *_: torch.full_like(visible, one, dtype=torch.float32)
    )
    assert found[share] == positions(ahakv.keep(prefill, share))


@pytest.mark.parametrize(("share", "alike"), zip(SHARES, (1, 0.99, 0.99, 0.98), strict=True))
def test_a_sharpness_for_each_query_keeps_almost_the_same(
    found: Any, prefill: Prefill, share: float, alike: float
) -> None:
    same, kept_tokens = 0, 0
    for layer, others in zip(found[share], positions(ahakv.keep(prefill, share)), strict=True):
        for ours, theirs in zip(layer, others, strict=True):
            assert len(ours) == len(theirs)
            same += len(set(ours) & set(theirs))
            kept_tokens += len(ours)
    assert same / kept_tokens >= alike


def test_an_answer_takes_the_places_of_a_prompt(tiny_llama: Path, prompt: list[int]) -> None:
    """100 tokens are of four pages, which then are all that a head has."""
    config = FastGenConfig(policy="ahakv", keep_tokens=100, force=True, min_answer=1)
    engine = Engine(engine_config(tiny_llama, config, skip_tokenizer_init=True))
    try:
        request_id = engine.add(prompt, max_tokens=120, detokenize=False)
        counts = [len(head) for layer in kept(engine, request_id) for head in layer]
        assert set(counts) <= {100, 101, 102}

        def watch() -> None:
            if (held := engine.kept_positions(request_id)) is not None:
                counts[:] = [len(head) for layer in held for head in layer]
                newest = {head[-32:][0] - head[-1] for layer in held for head in layer}
                assert newest == {-31}, "the last 32 tokens are kept"

        engine.run(watch)
        assert set(counts) == {128}
    finally:
        engine.close()
