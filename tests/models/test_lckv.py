"""LCKV models in the engine, beside their definition."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastgen_vllm.config import FastGenConfig, load_config
from fastgen_vllm.integration.cuda import PerHeadFlashBackend
from fastgen_vllm.integration.plugin import register
from fastgen_vllm.models.lckv import model as lckv_model
from fastgen_vllm.models.lckv.config import LCKVLlamaConfig
from fastgen_vllm.models.lckv.layer_types import LayerTypes
from tests.integration import flash
from tests.integration.engine import BLOCK_SIZE as S
from tests.integration.engine import Engine, Finished, engine_config, generate
from tests.integration.test_determinism import kept
from tests.integration.tiny import random_prompts
from tests.models.lckv import Definition, save_lckv

LAYOUTS = {
    "w2": "0_5_5_5_5_5_6",
    "w4": "0_1_5_5_5_5_6_7",
    "w10": "_".join(map(str, [0, 1, 2, 3, 4, *[16] * 12, 17, 18, 19, 20, 21])),
    "sandwich": "0_3_3_3_4_5",
    "two targets": "0_2_2_4_4_5",
}
PUBLISHED_W2 = "_".join(map(str, [0, *[20] * 20, 21]))
LENGTHS = [1, 2, 9, 10, S - 1, S, S + 1]
OPTIONS: dict[str, Any] = dict(
    skip_tokenizer_init=True, max_model_len=1024, kv_cache_memory_bytes=2**23
)
PARAMS: dict[str, Any] = dict(max_tokens=12, detokenize=False, logprobs=3)
NEAR = 2e-3  # nats; engine float32, definition float64


@pytest.fixture(scope="module", autouse=True)
def plugin() -> None:
    register()


def definition_of(model: Path) -> Definition:
    weights = load_file(model / "model.safetensors")
    return Definition(weights, LCKVLlamaConfig.from_pretrained(model))


def check(finished: Finished, logits: torch.Tensor) -> None:
    """Every token the likeliest, every logprob right; `logits` are those of the new tokens."""
    expected = logits.log_softmax(-1)
    assert len(finished.tokens) == len(expected)
    for token, seen, row in zip(finished.tokens, finished.logprobs, expected, strict=True):
        assert row[token] >= row.max() - NEAR
        for other, logprob in seen.items():
            assert abs(float(row[other]) - logprob) <= NEAR


def check_sequential(model: Path, prompts: list[list[int]], results: list[Finished]) -> None:
    definition = definition_of(model)
    for prompt, finished in zip(prompts, results, strict=True):
        logits = definition.sequential(prompt + finished.tokens[:-1])
        check(finished, logits[len(prompt) - 1 :])


@pytest.fixture(params=[False, True], ids=["diagonal", "nodiag"])
def force_nodiag(request: pytest.FixtureRequest) -> bool:
    chosen: bool = request.param
    return chosen


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_definition_token_by_token(
    layout: str, force_nodiag: bool, tmp_path: Path
) -> None:
    """As many passes as a prompt has tokens are exact."""
    model = save_lckv(tmp_path, LAYOUTS[layout], force_nodiag=force_nodiag, forward_passes=2 * S)
    prompts = random_prompts(LENGTHS)
    for one_by_one in (False, True) if layout == "w2" else (False,):
        config = engine_config(model, None, **OPTIONS)
        results, _ = generate(config, prompts, one_by_one=one_by_one, **PARAMS)
        check_sequential(model, prompts, results)


@pytest.mark.parametrize("budget", [64, 256])
def test_a_long_prompt_alone_is_exact(budget: int, tmp_path: Path) -> None:
    model = save_lckv(tmp_path, LAYOUTS["w2"], forward_passes=budget)
    prompts = random_prompts([700])
    config = engine_config(model, None, **OPTIONS, max_num_batched_tokens=budget, max_num_seqs=4)
    results, _ = generate(config, prompts, **PARAMS)
    check_sequential(model, prompts, results)


@pytest.mark.parametrize(("layout", "budget"), [("w2", 64), ("w2", 256), ("w10", 64)])
def test_long_prompts_in_chunks_are_exact(layout: str, budget: int, tmp_path: Path) -> None:
    """With a pass for every token of a chunk; beside others, preempted, and from cached blocks."""
    model = save_lckv(tmp_path, LAYOUTS[layout], forward_passes=budget)
    *short, long, other = random_prompts([*LENGTHS, 700, 60])
    prompts = [*short, long, long[:650] + other]
    # 33 blocks to use: 30 for all prompts but the last, which can only share; answers need more.
    small = dict(max_model_len=768, num_gpu_blocks_override=34, max_num_batched_tokens=budget)
    config = engine_config(model, None, **(OPTIONS | small))
    results, engine = generate(config, prompts, **(PARAMS | dict(max_tokens=S + 8)))
    check_sequential(model, prompts, results)
    assert engine.preemptions > 0, "the pool was not small enough to preempt"


@pytest.mark.parametrize("fastgen", [None, "full"])
def test_flash_attention_masks_strictly(
    fastgen: str | None, force_nodiag: bool, tmp_path: Path
) -> None:
    """The CUDA backend's metadata, with its kernels replaced."""
    model = save_lckv(tmp_path, LAYOUTS["w2"], force_nodiag=force_nodiag, forward_passes=2 * S)
    prompts = random_prompts([*LENGTHS, 2 * S])
    with flash.no_gpu() as patch:
        patch.setattr(lckv_model, "attention_backend", lambda: PerHeadFlashBackend)
        config = engine_config(model, fastgen and load_config(fastgen), **OPTIONS)
        if fastgen is not None:
            config.parallel_config.worker_cls = f"{flash.__name__}.FlashWorker"
        results, _ = generate(config, prompts, **PARAMS)
    check_sequential(model, prompts, results)


@pytest.mark.parametrize("passes", [1, 9])
@pytest.mark.parametrize("budget", [64, 256])
def test_passes_over_chunks(passes: int, budget: int, force_nodiag: bool, tmp_path: Path) -> None:
    """A long prompt, in chunks, does as many passes over each as were asked for."""
    model = save_lckv(
        tmp_path,
        LAYOUTS["w2"],
        force_nodiag=force_nodiag,
        forward_passes=passes - 1,
        backward_passes=1,
    )
    (prompt,) = random_prompts([700])
    chunked = dict(max_num_batched_tokens=budget, max_num_seqs=4)
    (finished,), _ = generate(engine_config(model, None, **OPTIONS, **chunked), [prompt], **PARAMS)
    chunks = [prompt[i : i + budget] for i in range(0, len(prompt), budget)]
    chunks += [[token] for token in finished.tokens[:-1]]
    logits = definition_of(model).by_passes(chunks, passes)
    check(finished, logits[len(prompt) - 1 :])


def test_prefix_cache_hits_and_preemption_are_exact(tmp_path: Path) -> None:
    model = save_lckv(tmp_path, LAYOUTS["w2"], forward_passes=5 * S)
    start, *tails = random_prompts([2 * S, 1, 5, S, 9])
    prompts = [start + tail for tail in tails] * 2
    small = dict(max_model_len=256, num_gpu_blocks_override=16)
    config = engine_config(model, None, **(OPTIONS | small))
    results, engine = generate(config, prompts, **(PARAMS | dict(max_tokens=S + 2)))
    check_sequential(model, prompts, results)
    assert engine.preemptions > 0, "the pool was not small enough to preempt"


def test_only_owners_have_kv(tmp_path: Path) -> None:
    blocks = []
    for layout in ("0_1_2_3_4_5_6", LAYOUTS["w2"]):
        model = save_lckv(tmp_path / layout, layout)
        _, engine = generate(engine_config(model, None, **OPTIONS), [[5, 6, 7]], **PARAMS)
        blocks.append(engine.scheduler.kv_cache_manager.block_pool.num_gpu_blocks)
    assert blocks[1] == pytest.approx(blocks[0] * 7 / 3, abs=1)


@pytest.mark.parametrize("layout", ["w2", "w4"])
def test_full_heads_answer_as_without_fastgen(
    layout: str, force_nodiag: bool, tmp_path: Path
) -> None:
    model = save_lckv(tmp_path, LAYOUTS[layout], force_nodiag=force_nodiag)
    prompts = random_prompts([*LENGTHS, 100, 300])
    params = PARAMS | dict(max_tokens=S + 8)
    stock, _ = generate(engine_config(model, None, **OPTIONS), prompts, **params)
    ours, engine = generate(engine_config(model, load_config("full"), **OPTIONS), prompts, **params)
    assert [f.tokens for f in ours] == [f.tokens for f in stock]
    assert engine.stats.compactions == len(prompts)


def test_replayed_queries_of_all_readers_rank_an_owners_tokens(tmp_path: Path) -> None:
    """Queries wait for each layer that reads: the same tokens are kept in any chunks."""
    model = save_lckv(tmp_path, LAYOUTS["w2"], forward_passes=256)
    prompt = random_prompts([700])[0]
    fastgen = FastGenConfig(keep=0.3, min_answer=1, force=True)
    assert fastgen.observe == "replay"
    found = []
    for budget in (64, 256):
        config = engine_config(
            model, fastgen, **OPTIONS, max_num_batched_tokens=budget, max_num_seqs=4
        )
        engine = Engine(config)
        try:
            found.append(kept(engine, engine.add(prompt, **PARAMS)))
        finally:
            engine.close()
    assert found[0] == found[1]
    held = [len(positions) for layer in found[0] for positions in layer]
    assert sum(held) == pytest.approx(0.3 * 700 * len(held), rel=0.02) and min(held) < max(held)


def test_the_published_configuration_serves(tmp_path: Path) -> None:
    """22 layers of which three own K and V, every mask strict: `tinyllama-lckv-w2`'s string."""
    model = save_lckv(tmp_path, PUBLISHED_W2, force_nodiag=True)
    assert json.loads((model / "config.json").read_text())["layer_types"] == PUBLISHED_W2
    prompts = random_prompts([5, 40])
    results, engine = generate(
        engine_config(model, load_config("balanced"), **OPTIONS), prompts, **PARAMS
    )
    check_sequential(model, prompts[:1], results[:1])
    assert engine.runtime.geometry.num_layers == 3


@pytest.mark.slow
@pytest.mark.parametrize(("layer_types", "owners"), [(PUBLISHED_W2, 3), (LAYOUTS["w10"], 11)])
def test_the_published_shape_serves(layer_types: str, owners: int, tmp_path: Path) -> None:
    """1.1 billion random weights, in TinyLlama's shape."""
    LCKVLlamaConfig(
        layer_types=layer_types,
        force_nodiag=True,
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        architectures=["LCKVLlamaForCausalLM"],
    ).save_pretrained(tmp_path)
    shape = dict(dtype="bfloat16", load_format="dummy", kv_cache_memory_bytes=2**26)
    config = engine_config(
        tmp_path, FastGenConfig(when="always", policy="coverage", keep=0.25), **(OPTIONS | shape)
    )
    results, engine = generate(config, random_prompts([5, 100]), max_tokens=8, detokenize=False)
    assert [len(finished.tokens) for finished in results] == [8, 8]
    assert engine.runtime.geometry.num_layers == owners
    assert engine.stats.compactions >= 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (dict(layer_types="0_9"), "entry '9' of layer 1"),
        (dict(layer_types="0s_1"), "needs sliding_window"),
        (dict(layer_types="1_1", forward_passes=0, backward_passes=0), "at least one pass"),
    ],
)
def test_wrong_configurations_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        LCKVLlamaConfig(num_hidden_layers=2, **options)


@pytest.mark.parametrize("layout", ["0s_1s_2_2_2", "0_0_2_2", "0_4s_4s_4_4_5", "0s_3s_3_3_4s"])
def test_sliding_windows_and_single_pass_sharing(layout: str, tmp_path: Path) -> None:
    """YOCO's windows below, CLA's sharing, and windows of layers that look up."""
    prompts = random_prompts([40, 70])
    model = save_lckv(tmp_path, layout, sliding_window=16, forward_passes=70)
    results, _ = generate(engine_config(model, None, **OPTIONS), prompts, **PARAMS)
    check_sequential(model, prompts, results)


def test_layer_types_are_read() -> None:
    types = LayerTypes.parse(PUBLISHED_W2, 22)
    assert types.owners == [0, 20, 21]
    assert types.cycle == range(1, 21)
    assert not LayerTypes.parse("0_0_2_2", 4).cycle
    assert LayerTypes.parse("0s_1_1s", 3).sliding == (True, False, True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0_1", "has 2 entries, the model 3 layers"),
        ("0_1_3", "entry '3' of layer 2 must be a layer from 0 to 2"),
        ("0_x_2", "entry 'x' of layer 1"),
        ("1_2_2", "layer 0 reads layer 1, which has no K and V of its own but reads layer 2"),
    ],
)
def test_wrong_layer_types_are_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        LayerTypes.parse(text, 3)
