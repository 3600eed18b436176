"""What runs on a GPU, as far as it runs without one: the CUDA worker's engine on the CPU."""

from pathlib import Path
from typing import Any

import pytest
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from fastgen_vllm import ops
from fastgen_vllm.config import FastGenConfig, load_config
from fastgen_vllm.integration.cuda import SCRATCH_BYTES, PerHeadCUDAWorker, PerHeadFlashBackend
from tests.integration import flash
from tests.integration.engine import Engine, engine_config, generate, tokens
from tests.integration.tiny import random_prompts

OPTIONS: dict[str, Any] = dict(
    skip_tokenizer_init=True, max_model_len=512, kv_cache_memory_bytes=2**21
)
PARAMS: dict[str, Any] = dict(max_tokens=40, detokenize=False)
PROMPTS = random_prompts([1, 31, 32, 33, 100, 150, 257, 300])
PROMPTS += [PROMPTS[-1][:224] + tail for tail in random_prompts([20, 50], seed=2)]  # shared blocks
WORKERS = {False: "FlashWorker", True: "InOrderFlashWorker"}


def flash_config(model: Path, fastgen: FastGenConfig, **options: Any) -> Any:
    config = engine_config(model, fastgen, **(OPTIONS | options))
    worker = WORKERS[bool(options.get("async_scheduling"))]
    config.parallel_config.worker_cls = f"{flash.__name__}.{worker}"
    return config


@pytest.fixture(scope="module")
def stock(tiny_llama: Path) -> list[list[int]]:
    config = engine_config(tiny_llama, None, **OPTIONS)
    return tokens(generate(config, PROMPTS, **PARAMS)[0])


@pytest.mark.parametrize(
    "variant",
    [
        {},
        dict(async_scheduling=True, max_num_batched_tokens=64),
        dict(num_gpu_blocks_override=20),
    ],
    ids=["sync", "async-chunked", "small-pool"],
)
@pytest.mark.parametrize("decode_kernel", ["fastgen", "stock"])
def test_full_heads_answer_like_stock(
    variant: dict[str, Any],
    decode_kernel: str,
    tiny_llama: Path,
    stock: list[list[int]],
) -> None:
    changes = {"decode_kernel": decode_kernel, "observe": "replay"}
    full = load_config("full").model_copy(update=changes)
    with flash.no_gpu():
        config = flash_config(tiny_llama, full, **variant)
        results, engine = generate(config, PROMPTS, **PARAMS)
    assert tokens(results) == stock
    assert engine.stats.compactions >= len(PROMPTS)
    if "num_gpu_blocks_override" in variant:
        assert engine.preemptions > 0, "the pool was not small enough to preempt"


@pytest.mark.parametrize(
    ("preset", "observe"), [("paper", 64), ("balanced", 256), ("balanced", "replay")]
)
def test_compressed_heads_are_those_of_the_cpu(
    preset: str, observe: int | str, tiny_llama: Path
) -> None:
    fastgen = load_config(preset).model_copy(
        update={"force": True, "min_prompt": 0, "observe": observe}
    )

    def run(config: Any) -> tuple[list[Any], list[int]]:
        engine = Engine(config)
        try:
            request_id = engine.add(random_prompts([300])[0], **PARAMS)
            kept = []
            while engine.llm.has_unfinished_requests():
                engine.step()
                if (positions := engine.kept_positions(request_id)) is not None:
                    kept.append(positions)
            return kept, engine.finished[request_id].tokens
        finally:
            engine.close()

    on_cpu = run(engine_config(tiny_llama, fastgen, **OPTIONS))
    with flash.no_gpu():
        assert run(flash_config(tiny_llama, fastgen)) == on_cpu
    assert on_cpu[0], "the request was not compacted"


def test_the_gpus_worker_is_made(tiny_llama: Path) -> None:
    """All vLLM names that it uses are there, and vLLM finds our backend by the stock one's name."""
    config = engine_config(tiny_llama, load_config("balanced"), **OPTIONS)
    config.device_config.device_type = "cuda"
    with flash.no_gpu() as patch:
        patch.setattr(ops, "device_types", lambda: ("cpu", "cuda"))
        worker = PerHeadCUDAWorker(config, 0, 0, "file:///nowhere")
        assert AttentionBackendEnum.FLASH_ATTN.get_class() is PerHeadFlashBackend
    assert worker.working_bytes(6) == 96 * 6 * 512 + SCRATCH_BYTES
    support = PerHeadFlashBackend.get_builder_cls().get_cudagraph_support(config, None)
    assert support is AttentionCGSupport.NEVER


def test_heads_lie_in_one_piece(tiny_llama: Path) -> None:
    """FlashAttention takes caches in any order; ours asks for the one that it reads best."""
    with flash.no_gpu():
        engine = Engine(flash_config(tiny_llama, load_config("full")))
        try:
            cache = engine.runtime._arena
            L, _, H, S, width = cache.shape
            assert (L, H, width) == (3, 2, 64)
            assert cache.stride()[2:] == (S * width, width, 1)
        finally:
            engine.close()
