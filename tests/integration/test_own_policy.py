"""A policy of the user's own on the engine: what it keeps is what heads hold."""

import logging
from pathlib import Path

import pytest

from fastgen_vllm.config import FastGenConfig
from tests.integration.engine import Engine, engine_config, generate
from tests.integration.tiny import random_prompts
from tests.policy import own

LENGTH = 300
EVERYTHING = list(range(LENGTH))
THIRDS = EVERYTHING[::3]


def kept_of(model: Path, policy: str, recovery: float, **arguments: str) -> list[list[list[int]]]:
    """Prompt positions that heads hold right after a prompt was compacted, ``[L][H]``."""
    config = FastGenConfig(
        policy=f"{own.MODULE}:{policy}", recovery=recovery, force=True, min_answer=1
    )
    engine = Engine(engine_config(model, config, skip_tokenizer_init=True))
    try:
        (prompt,) = random_prompts([LENGTH])
        request_id = engine.add(prompt, max_tokens=8, detokenize=False, extra_args=arguments)
        seen: list[list[list[list[int]]]] = []

        def watch() -> None:
            if not seen and (kept := engine.kept_positions(request_id)) is not None:
                seen.append(kept)

        engine.run(watch)
    finally:
        engine.close()
    (first,) = seen
    return [[[p for p in head if p < LENGTH] for head in layer] for layer in first]


def test_a_policy(tiny_llama: Path) -> None:
    """Kept tokens and 8 generated ones fit into its pages: none has to give way."""
    assert kept_of(tiny_llama, "Every", recovery=0.01) == [[THIRDS] * 2] * 3


def test_a_policy_that_recovers_too_little(tiny_llama: Path) -> None:
    assert kept_of(tiny_llama, "Every", recovery=0.999) == [[EVERYTHING] * 2] * 3


def test_a_selector(tiny_llama: Path) -> None:
    assert kept_of(tiny_llama, "Alternating", recovery=1.0) == [[THIRDS, EVERYTHING]] * 3


def test_a_request_that_asks_for_a_built_in_one(tiny_llama: Path) -> None:
    kept = kept_of(tiny_llama, "Every", recovery=0.01, fastgen_policy="full")
    assert kept == [[EVERYTHING] * 2] * 3


class Errors(logging.Handler):
    """Keeps errors that are logged, and whether with a traceback; not that: it holds the engine."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[tuple[str, bool]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append((record.getMessage(), record.exc_info is not None))


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_prompt_on_which_a_policy_fails(tiny_llama: Path, is_async: bool) -> None:
    """It is served uncompressed, and the log and the metric say so; others are compressed."""
    config = FastGenConfig(
        when="always", policy=f"{own.MODULE}:Choosy", recovery=0.01, min_answer=1
    )
    prompts = random_prompts([LENGTH, LENGTH + 1, LENGTH])
    params = dict(max_tokens=8, detokenize=False)
    options = dict(async_scheduling=is_async, skip_tokenizer_init=True)
    engine = Engine(engine_config(tiny_llama, config, **options))
    log = logging.getLogger("vllm.fastgen")  # after the engine: vLLM takes handlers away
    errors = Errors()
    log.addHandler(errors)
    try:
        ids = [engine.add(prompt, **params) for prompt in prompts]
        results = engine.run()
    finally:
        log.removeHandler(errors)
        engine.close()
    assert engine.stats.uncompacted == {"policy_failed": 1}
    assert engine.stats.compactions == 2
    ((message, says_where),) = errors.found
    assert message.endswith("of 301 tokens (AssertionError: an odd prompt): served uncompressed.")
    assert says_where
    stock = engine_config(tiny_llama, None, skip_tokenizer_init=True)
    (expected,), _ = generate(stock, prompts[1:2], **params)
    assert results[ids[1]].tokens == expected.tokens
