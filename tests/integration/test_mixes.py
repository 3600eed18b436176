"""Random mixes of prompts that share beginnings take no more blocks than in stock vLLM."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen_vllm.config import FastGenConfig
from tests.integration.engine import Engine, engine_config
from tests.integration.test_blocks import used
from tests.integration.tiny import random_prompts

OPTIONS: dict[str, Any] = dict(
    skip_tokenizer_init=True,
    max_model_len=1024,
    num_gpu_blocks_override=400,  # for all that a mix can need
    max_num_batched_tokens=512,
)
(BEGINNING,) = random_prompts([480], seed=70)
OWN = random_prompts([120] * 6, seed=71)


@dataclass(frozen=True)
class Asked:
    """One request of a mix."""

    shared: int  # first tokens that others have, too
    own: int  # further tokens, at least one
    answer: int
    step: int = 0  # in which it comes


REQUEST = st.builds(
    Asked,
    shared=st.sampled_from([0, 31, 64, 200, 256, 480]),
    own=st.integers(1, 120),
    answer=st.integers(1, 36),
)
AT_ONCE = st.lists(REQUEST, min_size=1, max_size=6)
COMING = st.lists(
    st.builds(lambda asked, step: Asked(asked.shared, asked.own, asked.answer, step),
              REQUEST, st.integers(0, 30)),
    min_size=1, max_size=6,
)  # fmt: skip


@dataclass(frozen=True)
class Moment:
    """An engine after a step."""

    blocks: int
    running: int


def run(engine: Engine, mix: Sequence[Asked]) -> tuple[list[list[int]], list[Moment]]:
    """Answers, and what each step left; the engine's cache is empty before and after."""
    engine.scheduler.reset_prefix_cache()
    ids: dict[int, str] = {}
    moments: list[Moment] = []
    while len(ids) < len(mix) or engine.llm.has_unfinished_requests():
        for number, asked in enumerate(mix):
            if asked.step == len(moments):
                prompt = BEGINNING[: asked.shared] + OWN[number][: asked.own]
                ids[number] = engine.add(prompt, max_tokens=asked.answer, detokenize=False)
        engine.step()
        moments.append(Moment(used(engine), len(engine.scheduler.running)))
    engine.check_drained()
    return [engine.finished[ids[number]].tokens for number in range(len(mix))], moments


@pytest.fixture(scope="module")
def stock(tiny_llama: Path) -> Iterator[Engine]:
    engine = Engine(engine_config(tiny_llama, None, **OPTIONS))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def ours(tiny_llama: Path) -> Iterator[Engine]:
    fastgen = FastGenConfig(keep=0.3, when="always", min_answer=1)
    engine = Engine(engine_config(tiny_llama, fastgen, **OPTIONS))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def patient(tiny_llama: Path) -> Iterator[Engine]:
    engine = Engine(engine_config(tiny_llama, FastGenConfig(keep=0.3, min_answer=1), **OPTIONS))
    yield engine
    engine.close()


def mixes(count: int) -> settings:
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


@mixes(64)
@given(mix=AT_ONCE)
def test_compacted_at_once(stock: Engine, ours: Engine, mix: list[Asked]) -> None:
    """Never more than stock, but for a page a head and a block a request: two blocks a request."""
    _, stocks = run(stock, mix)
    _, moments = run(ours, mix)
    assert len(moments) == len(stocks)
    for moment, other in zip(moments, stocks, strict=True):
        assert moment.blocks <= other.blocks + 2 * other.running


@mixes(24)
@given(mix=COMING)
def test_with_room_it_is_stock(stock: Engine, patient: Engine, mix: list[Asked]) -> None:
    """Tokens, and blocks after every step."""
    assert run(patient, mix) == run(stock, mix)
