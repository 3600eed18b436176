"""Requests with a seed, whose prompts are computed in chunks or in one step."""

from pathlib import Path

from fastgen_vllm.config import FastGenConfig
from tests.integration.engine import engine_config, generate, tokens
from tests.integration.tiny import random_prompts


def test_seeded_requests_in_chunks(tiny_llama: Path) -> None:
    """vLLM takes back a sample that it throws away by the generator's offset; CPUs have none."""
    prompts = random_prompts([129, 300, 60])
    lossless = FastGenConfig(policy="full", force=True, min_prompt=64, observe=32)
    found = []
    for fastgen, budget in ((None, 1024), (lossless, 1024), (lossless, 128)):
        config = engine_config(
            tiny_llama,
            fastgen,
            skip_tokenizer_init=True,
            max_model_len=1024,
            num_gpu_blocks_override=100,
            max_num_batched_tokens=budget,
        )
        results, _ = generate(
            config, prompts, max_tokens=8, temperature=1.0, seed=3, detokenize=False
        )
        found.append(tokens(results))
    assert found[0] == found[1] == found[2]
    assert len({tuple(answer) for answer in found[0]}) == 3
