"""What FastGen cannot be combined with is refused at start, naming the flag."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    DeepseekV2Config,
    Gemma3TextConfig,
    MistralConfig,
)

from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.integration.names import COMMON_NAMES, DEVICE_NAMES, check_vllm_names
from fastgen_vllm.integration.options import check_engine_config, config_of
from tests.integration.engine import Engine, engine_config
from tests.integration.mixed import save_mixed
from tests.integration.tiny import save_random, save_tiny_llama, tiny_shape

CONFIG = FastGenConfig()


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (dict(tensor_parallel_size=2), "--tensor-parallel-size"),
        (dict(pipeline_parallel_size=2), "--pipeline-parallel-size"),
        (
            dict(speculative_config={"method": "ngram", "num_speculative_tokens": 2}),
            "--speculative-config",
        ),
        (
            dict(
                kv_transfer_config={
                    "kv_connector": "ExampleConnector",
                    "kv_role": "kv_both",
                }
            ),
            "--kv-transfer-config",
        ),
        (dict(kv_cache_dtype="fp8"), "--kv-cache-dtype"),
        (dict(dtype="float16", kv_cache_dtype="bfloat16"), "--kv-cache-dtype"),
        (dict(kv_sharing_fast_prefill=True), "--kv-sharing-fast-prefill"),
        (dict(block_size=48), "--block-size"),
        (dict(logits_processors=[]), "--logits-processors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_flag(tiny_llama: Path, options: dict[str, Any], flag: str) -> None:
    if "tensor_parallel_size" in options or "pipeline_parallel_size" in options:
        options = options | dict(distributed_executor_backend="mp")
    with pytest.raises(ValueError, match=flag) as caught:
        engine_config(tiny_llama, CONFIG, skip_tokenizer_init=True, **options)
    assert "--fastgen off" in str(caught.value)


def test_context_parallel(tiny_llama: Path) -> None:
    config = engine_config(tiny_llama, CONFIG, skip_tokenizer_init=True)
    config.parallel_config.decode_context_parallel_size = 2
    with pytest.raises(ValueError, match="--decode-context-parallel-size"):
        check_engine_config(config)


def test_old_ray_executor(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls the model runner past the worker: everything would be served uncompressed."""
    config = engine_config(tiny_llama, CONFIG, skip_tokenizer_init=True)
    config.parallel_config.distributed_executor_backend = "ray"
    check_engine_config(config)
    monkeypatch.setenv("VLLM_USE_RAY_V2_EXECUTOR_BACKEND", "0")
    with pytest.raises(ValueError, match="VLLM_USE_RAY_V2_EXECUTOR_BACKEND=0"):
        check_engine_config(config)


def test_missing_options(tiny_llama: Path) -> None:
    config = engine_config(tiny_llama, None, skip_tokenizer_init=True)
    with pytest.raises(ValueError, match="--additional-config"):
        config_of(config)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("unsupported")
    shape = tiny_shape()
    return {
        "sliding-window": save_random(root / "mistral", MistralConfig(**shape, sliding_window=64)),
        "hybrid": save_random(
            root / "gemma",
            Gemma3TextConfig(**shape, sliding_window=64, sliding_window_pattern=2),
        ),
        "head-size": save_tiny_llama(root / "d80", head_dim=80),
        "mla": save_random(
            root / "mla",
            DeepseekV2Config(
                **(shape | dict(num_key_value_heads=4)),
                kv_lora_rank=32,
                q_lora_rank=None,
                qk_nope_head_dim=32,
                qk_rope_head_dim=32,
                v_head_dim=32,
                first_k_dense_replace=3,
                n_routed_experts=2,
                num_experts_per_tok=1,
                n_group=1,
                topk_group=1,
                moe_intermediate_size=64,
            ),
        ),
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sliding-window", "sliding-window"),
        ("hybrid", "KV groups"),
        ("head-size", "head size"),
        ("mla", "MLA"),
    ],
)
def test_model(models: dict[str, Path], name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        engine_config(models[name], CONFIG, skip_tokenizer_init=True)
    assert "--fastgen off" in str(caught.value)
    assert "unsupported: uncompressed" in str(caught.value)


@pytest.fixture(scope="module")
def fp8_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that asks for a cache in fp8: vLLM learns of it when it builds the layers."""
    path = save_tiny_llama(tmp_path_factory.mktemp("unsupported") / "fp8") / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "dense",
        "config_groups": {},
        "ignore": ["lm_head"],
        "kv_cache_scheme": {
            "num_bits": 8,
            "type": "float",
            "strategy": "tensor",
            "dynamic": False,
            "symmetric": True,
        },
    }
    path.write_text(json.dumps(config))
    return path.parent


def test_a_checkpoint_with_a_quantised_cache(fp8_cache: Path) -> None:
    options: dict[str, Any] = dict(
        skip_tokenizer_init=True, max_model_len=512, kv_cache_memory_bytes=2**24
    )
    with pytest.raises(ValueError, match="of uint8 quantised as FP8_PER_TENSOR") as caught:
        run(engine_config(fp8_cache, CONFIG, **options), [])
    assert "--fastgen off" in str(caught.value)
    prompt = list(range(3, 150))
    expected = run(engine_config(fp8_cache, None, **options), prompt)
    config = FastGenConfig(unsupported="uncompressed")
    assert run(engine_config(fp8_cache, config, **options), prompt) == expected


def test_layers_that_differ_in_query_heads(tmp_path: Path) -> None:
    """Two groups of layers over one cache: a step is planned once for both."""
    options: dict[str, Any] = dict(
        skip_tokenizer_init=True,
        max_model_len=512,
        kv_cache_memory_bytes=2**24,
        load_format="dummy",
    )
    model = save_mixed(tmp_path)
    prompt = list(range(3, 150))
    expected = run(engine_config(model, None, **options), prompt)
    engine = Engine(engine_config(model, FastGenConfig(policy="full", force=True), **options))
    try:
        runner = engine.core.model_executor.driver_worker.worker.model_runner
        assert [len(groups) for groups in runner.attn_groups] == [2]
        request_id = engine.add(prompt, max_tokens=20, detokenize=False)
        assert engine.run()[request_id].tokens == expected
        assert engine.stats.compactions == 1
    finally:
        engine.close()


@pytest.mark.parametrize("name", ["sliding-window", "hybrid", "head-size"])
def test_model_served_uncompressed(models: dict[str, Path], name: str) -> None:
    """With `unsupported: uncompressed` such a model gives what stock vLLM gives."""
    options: dict[str, Any] = dict(
        skip_tokenizer_init=True, max_model_len=512, kv_cache_memory_bytes=2**24
    )
    prompt = list(range(3, 150))
    expected = run(engine_config(models[name], None, **options), prompt)
    config = FastGenConfig(unsupported="uncompressed")
    assert run(engine_config(models[name], config, **options), prompt) == expected


def run(config: Any, prompt: list[int]) -> list[int]:
    engine = Engine(config)
    try:
        request_id = engine.add(prompt, max_tokens=20, detokenize=False)
        while engine.llm.has_unfinished_requests():
            for output in engine.llm.step():
                tokens = list(output.outputs[0].token_ids)
        assert request_id
        return tokens
    finally:
        engine.close()


def test_vllm_names_are_there() -> None:
    check_vllm_names("cpu")


def test_a_missing_vllm_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMON_NAMES, "vllm.v1.core.block_pool:BlockPool.gone", ())
    touch = "vllm.v1.core.block_pool:BlockPool.touch"
    monkeypatch.setitem(DEVICE_NAMES["cpu"], touch, ("absent",))
    with pytest.raises(ImportError, match=r"BlockPool\.gone") as caught:
        check_vllm_names("cpu")
    assert "BlockPool.touch parameters absent" in str(caught.value)
