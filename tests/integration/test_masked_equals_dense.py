"""Invariant 2: decode after compaction equals dense attention over the kept tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from fastgen_vllm.config import CoverageOptions, FastGenConfig, PaperOptions
from fastgen_vllm.geometry import CacheGeometry, HeadField
from fastgen_vllm.lifecycle import CompactionPlan, plan_compaction
from fastgen_vllm.profile import PromptProfile
from fastgen_vllm.profile.observation import Observation
from fastgen_vllm.request import RequestOptions
from tests.integration.engine import BLOCK_SIZE, Engine, engine_config
from tests.integration.tiny import random_prompts
from tests.oracle import Decoder

#: Without a tokenizer no token is special: these configurations need none.
CONFIGS = {
    "paper": FastGenConfig(
        policy="paper", recovery=0.6, observe=64, force=True, paper=PaperOptions(local=0.2)
    ),
    "frequent": FastGenConfig(
        policy="paper",
        recovery=0.58,  # one head is full, five are frequent
        observe="all",
        force=True,
        paper=PaperOptions(local=0.1, frequent=0.25),
    ),
    "coverage": FastGenConfig(policy="coverage", recovery=0.7, observe=64, force=True),
    "max": FastGenConfig(policy="coverage", recovery=0.8, observe=32, force=True, pool="max"),
    "min": FastGenConfig(policy="coverage", recovery=0.6, observe=32, force=True, pool="min"),
    "share": FastGenConfig(
        policy="coverage", keep=0.3, observe=64, force=True, coverage=CoverageOptions(recent=0.2)
    ),
    "generated": FastGenConfig(
        policy="coverage",
        recovery=0.7,
        observe=64,
        force=True,
        coverage=CoverageOptions(generated="keep"),
    ),
    "growing": FastGenConfig(
        policy="coverage",
        keep=0.3,
        observe=64,
        force=True,
        coverage=CoverageOptions(recent=0.2, generated=0.5),
    ),
    "replay": FastGenConfig(
        policy="coverage",
        keep=0.3,
        observe="replay",
        force=True,
        coverage=CoverageOptions(recent=0.1, generated=0.5),
    ),
    "replay-max": FastGenConfig(
        policy="coverage", recovery=0.7, observe="replay", force=True, pool="max"
    ),
    "exact replay": FastGenConfig(policy="coverage", keep=0.3, observe="exact replay", force=True),
    "share-generated": FastGenConfig(
        policy="coverage",
        keep=0.3,
        observe=64,
        force=True,
        coverage=CoverageOptions(recent=0.2, generated="keep"),
    ),
}

#: Share of kept positions that may differ: tokens whose attention differs by rounding only.
TIES = 0.002


def difference(kept: list[list[list[int]]], other: list[list[list[int]]]) -> float:
    """Share of kept positions that are in one of two models' heads but not in the other."""
    total = differing = 0
    for heads, other_heads in zip(kept, other, strict=True):
        for head, other_head in zip(heads, other_heads, strict=True):
            total += len(head)
            differing += len(set(head) ^ set(other_head))
    return differing / total


def compare(
    model: Path,
    config: FastGenConfig,
    prompt: list[int],
    *,
    max_tokens: int,
    tolerance: float,
    num_shared: int = 0,
    found: Sequence[tuple[int, bool]] = (),
    **options: Any,
) -> tuple[CompactionPlan, list[list[list[int]]]]:
    """Run the engine, feed its tokens to the oracle, compare.

    Args:
        num_shared: first tokens of the prompt that another request reads, too.
        found: requests that were there before: so many of its first tokens, and whether they were
            compressed.

    Returns:
        The plan, and the positions that the engine's heads held near the end.
    """
    engine = Engine(engine_config(model, config, **options))
    first_kept: list[list[list[int]]] = []
    last_kept: list[list[list[int]]] = []
    try:
        if num_shared:
            other = prompt[:num_shared] + prompt[:5]
            off = {"fastgen": "off"}
            engine.add(other, max_tokens=max_tokens, detokenize=False, extra_args=off)
        for length, is_compressed in found:
            asked_for = {"fastgen": "on" if is_compressed else "off"}
            engine.add(prompt[:length], max_tokens=20, detokenize=False, extra_args=asked_for)
            engine.run()
        request_id = engine.add(prompt, max_tokens=max_tokens, logprobs=5, detokenize=False)
        table = engine.runtime._token_class

        def watch() -> None:
            nonlocal last_kept
            if (kept := engine.kept_positions(request_id)) is not None:
                last_kept = kept
                if not first_kept:
                    first_kept.extend(kept)

        result = engine.run(watch)[request_id]
    finally:
        engine.close()

    oracle = Decoder(model)
    asked = Observation.of(config, RequestOptions(), len(prompt))
    sample = asked.sample if asked.is_replay else 0
    begin, replayed = 0, []
    for length, is_compressed in found:
        if is_compressed:
            replayed.append(range(begin, length))
        begin = length // BLOCK_SIZE * BLOCK_SIZE
    num_observed = min(asked.num_observed, len(prompt) - begin)
    replayed.append(range(begin, len(prompt)))
    logprobs = oracle.prefill(prompt, num_observed, config.pool, replay=sample, replayed=replayed)
    token_class = table[torch.tensor(prompt)]
    profile = PromptProfile(
        attention=oracle.attention,
        energy=oracle.energy,
        value_norm=oracle.value_norm,
        token_class=token_class,
        num_observed=num_observed,
        is_replay=asked.is_replay,
    )
    geometry = CacheGeometry(
        oracle.num_layers,
        oracle.num_kv_heads,
        oracle.group,
        oracle.head_size,
        BLOCK_SIZE,
        num_blocks=0,
    )
    stock_blocks = num_shared // BLOCK_SIZE
    plan = plan_compaction(profile, config, RequestOptions(), geometry, stock_blocks)
    oracle.compact(plan.choice.keep, plan.stream.records, token_class, BLOCK_SIZE)
    for step, token in enumerate(result.tokens):
        for candidate, logprob in result.logprobs[step].items():
            assert logprob == pytest.approx(float(logprobs[candidate]), abs=tolerance)
        if step + 1 < len(result.tokens):
            logprobs = oracle.decode(token, len(prompt) + step, int(table[token]), config.pool)
        # The last step's row is gone when it is over: the one before is the last seen.
        if step == 0:
            assert difference(first_kept, oracle.kept_positions()) <= TIES
        if step == len(result.tokens) - 3:
            assert difference(last_kept, oracle.kept_positions()) <= TIES
    return plan, last_kept


def run_tiny(
    name: str, model: Path, max_tokens: int = 90, num_prompt: int = 203, **options: Any
) -> tuple[CompactionPlan, list[list[list[int]]]]:
    """Compare on a random model."""
    (prompt,) = random_prompts([num_prompt])
    return compare(
        model,
        CONFIGS[name],
        prompt,
        max_tokens=max_tokens,
        tolerance=2e-3,
        skip_tokenizer_init=True,
        max_model_len=num_prompt + 309,
        kv_cache_memory_bytes=2**24,
        **options,
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_qwen2", "tiny_mha"])
def test_random_model(name: str, model: str, request: pytest.FixtureRequest) -> None:
    plan, _ = run_tiny(name, request.getfixturevalue(model))
    assert plan.kept_share < 1.0, "nothing was freed: the test compares nothing"


@pytest.mark.parametrize(
    ("found", "num_prompt"),
    [
        pytest.param([(701, True)], 1100, id="replayed up to within a block"),
        pytest.param([(600, False)], 900, id="not replayed"),
        pytest.param([(300, False), (800, True)], 1030, id="in part"),
        pytest.param([(690, True)], 710, id="but for a few last tokens"),
        pytest.param([(320, True), (900, True)], 915, id="by several, and few last tokens"),
    ],
)
@pytest.mark.parametrize("budget", [2048, 200])
def test_found_in_the_prefix_cache(
    found: list[tuple[int, bool]], num_prompt: int, budget: int, tiny_llama: Path
) -> None:
    """What is computed is profiled; for the rest stands what others left beside its blocks."""
    options = dict(found=found, max_num_batched_tokens=budget)
    plan, _ = run_tiny("replay", tiny_llama, num_prompt=num_prompt, max_tokens=40, **options)
    assert plan.kept_share < 1.0


@pytest.mark.parametrize("name", ["paper", "coverage", "growing", "share-generated"])
def test_shared_prefix(name: str, tiny_llama: Path) -> None:
    """Heads hold all of it, and free and value only what follows."""
    plan, kept = run_tiny(name, tiny_llama, max_tokens=150, num_prompt=403, num_shared=288)
    assert plan.stream.size.stock_blocks == 9
    assert plan.kept_share < 1.0
    assert all(set(range(288)) <= set(head) for layer in kept for head in layer)


@pytest.mark.parametrize("name", ["replay", "replay-max", "exact replay"])
@pytest.mark.parametrize("chunk", [64, 256, 300, 2048])
def test_replay_of_several_blocks(name: str, chunk: int, tiny_llama: Path) -> None:
    """The last block is short, and the last queries are of two blocks."""
    plan, _ = run_tiny(
        name, tiny_llama, 20, 1_100, max_num_batched_tokens=chunk, enable_chunked_prefill=True
    )
    assert plan.kept_share < 1.0


@pytest.mark.parametrize("name", ["generated", "share-generated"])
def test_generated_tokens_stay_in_partly_kept_heads(name: str, tiny_llama: Path) -> None:
    """For nine pages, and heads that were full at different times."""
    plan, kept = run_tiny(name, tiny_llama, max_tokens=300)
    counts = plan.choice.keep.sum(-1)
    assert plan.stream.size.num_appending == counts.numel()
    assert not plan.choice.keep.all(-1).any(), "a head is kept whole"
    assert len(set((counts % BLOCK_SIZE).flatten().tolist())) > 1, "all heads grow at once"
    lengths = {
        len(head) - int(n)
        for row, ns in zip(kept, counts, strict=True)
        for head, n in zip(row, ns, strict=True)
    }
    assert len(lengths) == 1 and lengths.pop() >= 290
    for head in (head for row in kept for head in row):
        generated = [position for position in head if position >= 203]
        assert generated == list(range(203, 203 + len(generated)))


@pytest.mark.parametrize(("name", "appending"), [("growing", False), ("frequent", True)])
def test_capacity_grows_with_the_answer(name: str, appending: bool, tiny_llama: Path) -> None:
    """Slowly growing heads alone, and beside heads that append: both ways through the stream."""
    plan, kept = run_tiny(name, tiny_llama, max_tokens=300)
    size = plan.stream.size
    assert size.num_slow > 0 and (size.num_appending > 0) == appending
    assert size.steps(203 + 290) >= 2 * size.slow_period, "heads grow by less than two pages"
    slow = plan.stream.records[..., HeadField.GROWTH_PERIOD] == size.slow_period
    before, now = (plan.stream.capacity(203 + generated) for generated in (230, 298))
    for layer, head in slow.nonzero().tolist():
        assert before[layer, head] <= len(kept[layer][head]) <= now[layer, head]


@pytest.mark.parametrize("name", ["paper", "coverage", "generated", "growing", "replay"])
def test_real_model(name: str, default_model: Path) -> None:
    text = Path(torch.__file__).parent.joinpath("functional.py").read_text()
    tokenizer = AutoTokenizer.from_pretrained(default_model)
    chat = [{"role": "user", "content": f"What does this do?\n{text[2000:4400]}"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    plan, _ = compare(
        default_model,
        CONFIGS[name],
        prompt,
        max_tokens=24,
        tolerance=5e-3,
        max_model_len=2048,
    )
    assert plan.kept_share < 0.9
