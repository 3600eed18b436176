"""What the evaluation measures: the engine's own numbers equal an independent run's.

The engine says which prompt tokens every head kept. A plain PyTorch model that attends to just
those must give the same log-probabilities, all along a forced continuation.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div, nll_loss

from fastgen_vllm.evaluation.dense import DenseModel, Prefill
from fastgen_vllm.evaluation.engine import Job, Outcome
from fastgen_vllm.evaluation.measure import Method, divergence
from fastgen_vllm.evaluation.texts import Forced, Passage
from fastgen_vllm.pages.size import cdiv
from fastgen_vllm.request import ENABLED, GENERATED, KEEP, POLICY, RECOVERY
from tests.evaluation.watched import HEADS, LAYERS, SLOTS, WatchedEngine
from tests.integration.tiny import random_prompts

#: Prompt tokens: around a page's end, and in the middle of one.
LENGTHS = [300, 352, 353]
CONTINUATION = 40

#: Largest difference of two log-probabilities: three times what is seen with float32.
CLOSE = 7e-5
#: The same of two KL divergences and of two tokens, in nats, which are rounded to six digits.
KL_CLOSE = 3e-5
NLL_CLOSE = 2e-4

OFF = ((ENABLED, "off"),)
REPLACING = {
    "replace": ((KEEP, 0.3), (GENERATED, "replace")),
    "paper": ((POLICY, "paper"), (RECOVERY, 0.6)),
}
KEEPING = {
    "own": (),
    "keep 0.3": ((KEEP, 0.3), (GENERATED, "keep")),
    "keep 0.6": ((KEEP, 0.6), (GENERATED, "keep")),
    "keep 1": ((KEEP, 1.0), (GENERATED, "keep")),
}
MODES = {"off": OFF, **KEEPING, **REPLACING}
RECOVERIES = [0.8, 0.85, 0.9, 0.95, 1.0]


@pytest.fixture(scope="module")
def engine(tiny_base: Path) -> Iterator[WatchedEngine]:
    engine = WatchedEngine(tiny_base)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def dense(tiny_base: Path) -> DenseModel:
    return DenseModel(tiny_base)


def tokens_of(length: int, seed: int = 1) -> tuple[list[int], list[int]]:
    """A prompt and its continuation."""
    prompt, continuation = random_prompts([length, CONTINUATION], seed=1000 * seed + length)
    return prompt, continuation


def jobs_of(
    length: int, modes: Iterable[str] = MODES, seed: int = 1, count: int = CONTINUATION
) -> list[Job]:
    """The same prompt in several modes, with ``count`` forced tokens each."""
    prompt, continuation = tokens_of(length, seed)
    return [
        Job(f"{length}/{seed}/{mode}", prompt, MODES[mode], continuation[:count]) for mode in modes
    ]


@pytest.fixture(scope="module")
def outcomes(engine: WatchedEngine) -> dict[tuple[int, str], Outcome]:
    """All modes of every prompt, by length and mode."""
    return {
        (length, mode): outcome
        for length in LENGTHS
        for mode, outcome in zip(MODES, engine.run(jobs_of(length)), strict=True)
    }


@pytest.fixture(scope="module")
def prefills(dense: DenseModel) -> dict[int, Prefill]:
    return {length: dense.prefill(tokens_of(length)[0]) for length in LENGTHS}


def distance(a: Tensor | None, b: Tensor | None) -> float:
    """Largest difference between two runs' log-probabilities."""
    assert a is not None and b is not None
    return float((a - b).abs().max())


@pytest.mark.parametrize("length", LENGTHS)
def test_dense_run_with_all_tokens_is_the_model(
    length: int, dense: DenseModel, prefills: dict[int, Prefill]
) -> None:
    prompt, continuation = tokens_of(length)
    with torch.no_grad():
        logits = dense.model(torch.tensor([prompt + continuation[:-1]])).logits[0]
    expected = logits[length - 1 :].float().log_softmax(-1)
    followed = dense.follow(prefills[length], prefills[length].heads(), continuation)
    assert distance(followed, expected) <= CLOSE


@pytest.mark.parametrize("mode", ["off", *KEEPING])
@pytest.mark.parametrize("length", LENGTHS)
def test_engine_equals_dense_run_over_kept_tokens(
    length: int,
    mode: str,
    outcomes: dict[tuple[int, str], Outcome],
    dense: DenseModel,
    prefills: dict[int, Prefill],
) -> None:
    outcome, prefill = outcomes[length, mode], prefills[length]
    assert (outcome.kept is None) == (mode == "off")
    continuation = tokens_of(length)[1]
    followed = dense.follow(prefill, prefill.heads(outcome.kept), continuation)
    assert outcome.tokens == continuation
    assert distance(outcome.log_probabilities, followed) <= CLOSE


@pytest.mark.parametrize("mode", REPLACING)
@pytest.mark.parametrize("length", LENGTHS)
def test_replacing_heads_equal_dense_run_until_one_is_full(
    length: int,
    mode: str,
    outcomes: dict[tuple[int, str], Outcome],
    dense: DenseModel,
    prefills: dict[int, Prefill],
) -> None:
    outcome, prefill = outcomes[length, mode], prefills[length]
    assert outcome.kept is not None and outcome.policies is not None
    held = outcome.kept.sum(-1)
    spare = ((held // SLOTS + 1) * SLOTS - held)[held < length]
    rows = min(CONTINUATION, 1 + int(spare.min()))
    assert rows >= 2, "no row is decoded: the test compares nothing"
    followed = dense.follow(prefill, prefill.heads(outcome.kept), tokens_of(length)[1])
    assert outcome.log_probabilities is not None
    assert distance(outcome.log_probabilities[:rows], followed[:rows]) <= CLOSE
    if rows < CONTINUATION and mode == "replace":
        assert distance(outcome.log_probabilities, followed) > 100 * CLOSE, "nothing is replaced"


@pytest.mark.parametrize("mode", KEEPING)
@pytest.mark.parametrize("length", LENGTHS)
def test_divergence_is_that_of_the_dense_run(
    length: int,
    mode: str,
    outcomes: dict[tuple[int, str], Outcome],
    dense: DenseModel,
    prefills: dict[int, Prefill],
) -> None:
    prompt, continuation = tokens_of(length)
    outcome, full, prefill = outcomes[length, mode], outcomes[length, "off"], prefills[length]
    assert outcome.log_probabilities is not None and full.log_probabilities is not None
    passage = Passage("text", "random", prompt, continuation)
    row = divergence(
        Method(mode), passage, outcome.kept_share, full.log_probabilities, outcome.log_probabilities
    )
    dense_full = dense.follow(prefill, prefill.heads(), continuation)
    dense_kept = dense.follow(prefill, prefill.heads(outcome.kept), continuation)
    kl = kl_div(dense_kept, dense_full, reduction="none", log_target=True).sum(-1)
    target = torch.tensor(continuation)
    assert row.kl == pytest.approx(kl.tolist(), abs=KL_CLOSE)
    assert row.nll == pytest.approx(nll_of(dense_kept, target), abs=NLL_CLOSE)
    assert row.full_nll == pytest.approx(nll_of(dense_full, target), abs=NLL_CLOSE)
    assert row.agree == (dense_full.argmax(-1) == dense_kept.argmax(-1)).tolist()
    mean = sum(row.kl) / len(row.kl)
    assert mean < KL_CLOSE if mode == "keep 1" else mean > 0.1


def nll_of(log_probabilities: Tensor, target: Tensor) -> list[float]:
    return nll_loss(log_probabilities, target, reduction="none").tolist()


@pytest.mark.parametrize("length", LENGTHS)
def test_other_kept_tokens_are_told_apart(
    length: int,
    outcomes: dict[tuple[int, str], Outcome],
    dense: DenseModel,
    prefills: dict[int, Prefill],
) -> None:
    """A single kept token, of one head, that is another one."""
    outcome, prefill = outcomes[length, "keep 0.3"], prefills[length]
    assert outcome.kept is not None
    other = outcome.kept.clone()
    other[0, 0, int(other[0, 0].nonzero()[8])] = False
    followed = dense.follow(prefill, prefill.heads(other), tokens_of(length)[1])
    assert distance(outcome.log_probabilities, followed) > 10 * CLOSE


@pytest.mark.parametrize("length", LENGTHS)
def test_keeping_all_is_no_compression(
    length: int, outcomes: dict[tuple[int, str], Outcome]
) -> None:
    everything, full = outcomes[length, "keep 1"], outcomes[length, "off"]
    assert everything.kept is not None and everything.kept.all()
    assert everything.policies == [["full"] * HEADS] * LAYERS
    assert everything.kept_share == full.kept_share == 1.0
    assert distance(everything.log_probabilities, full.log_probabilities) <= CLOSE


@pytest.mark.parametrize("mode", ["keep 0.3", "keep 0.6", "replace"])
@pytest.mark.parametrize("length", LENGTHS)
def test_kept_share_is_the_one_asked_for(
    length: int, mode: str, outcomes: dict[tuple[int, str], Outcome]
) -> None:
    outcome = outcomes[length, mode]
    asked = dict(MODES[mode])[KEEP]
    assert outcome.kept is not None and outcome.kept.shape == (LAYERS, HEADS, length)
    assert abs(int(outcome.kept.sum()) - asked * outcome.kept.numel()) <= 0.5
    assert outcome.kept_share == pytest.approx(asked, abs=1 / outcome.kept.numel())


@pytest.mark.parametrize("mode", KEEPING)
@pytest.mark.parametrize("length", LENGTHS)
def test_memory_of_keeping_heads_is_exact(
    length: int, mode: str, outcomes: dict[tuple[int, str], Outcome]
) -> None:
    """Slots and pages follow from the kept tokens alone."""
    outcome = outcomes[length, mode]
    assert outcome.kept is not None
    held = outcome.kept.sum(-1).flatten().tolist()
    # The first step is the prefill; the last one's memory is given back when it is seen.
    assert [point.generated for point in outcome.memory] == list(range(2, CONTINUATION))
    for point in outcome.memory:
        new = point.generated - 1  # the last generated token is not stored yet
        stock = cdiv(length + new, SLOTS) * LAYERS * HEADS
        # All heads get a page more when the first is full.
        grown = max(cdiv(n + new, SLOTS) - cdiv(n, SLOTS) for n in held)
        slots, pages = sum(held) + new * len(held), sum(cdiv(n, SLOTS) + grown for n in held)
        assert point.slots == pytest.approx(slots / (LAYERS * HEADS * (length + new)))
        assert point.pages == pytest.approx(pages / stock)
        blocks = point.blocks * cdiv(length + new, SLOTS)
        assert blocks == pytest.approx(cdiv(pages, LAYERS * HEADS))
        if mode == "keep 1":
            assert point.slots == point.pages == point.blocks == 1.0


@pytest.mark.parametrize("length", LENGTHS)
def test_memory_of_replacing_heads_stays(
    length: int, outcomes: dict[tuple[int, str], Outcome]
) -> None:
    outcome = outcomes[length, "replace"]
    assert outcome.kept is not None
    slots, pages = [], []
    for point in outcome.memory:
        stored = length + point.generated - 1
        slots.append(round(point.slots * stored * LAYERS * HEADS))
        pages.append(round(point.pages * cdiv(stored, SLOTS) * LAYERS * HEADS))
    assert slots == sorted(slots)
    assert slots[0] == int(outcome.kept.sum()) + LAYERS * HEADS
    assert len(set(pages)) == 1
    assert slots[-1] <= pages[0] * SLOTS


@pytest.mark.parametrize("length", LENGTHS)
def test_an_uncompressed_job_holds_what_stock_vllm_holds(
    length: int, outcomes: dict[tuple[int, str], Outcome]
) -> None:
    outcome = outcomes[length, "off"]
    assert outcome.kept is None and outcome.policies is None and outcome.memory == []


def test_a_cached_prompt_keeps_the_same_tokens(
    engine: WatchedEngine, outcomes: dict[tuple[int, str], Outcome]
) -> None:
    length, modes = LENGTHS[1], ("off", "own", "keep 0.3")
    assert engine.cached[f"{length}/1/off"] == 0, "the first run found something"
    again = [replace(job, name=f"again/{job.name}") for job in jobs_of(length, modes)]
    for mode, outcome in zip(modes, engine.run(again), strict=True):
        assert engine.cached[outcome.job.name] >= length - 128 - SLOTS, "nothing was cached"
        before = outcomes[length, mode]
        assert outcome.tokens == before.tokens
        assert distance(outcome.log_probabilities, before.log_probabilities) <= CLOSE
        assert_same_cache(outcome, before)


def test_other_jobs_change_nothing(engine: WatchedEngine) -> None:
    """Alone or among others of other lengths, before or behind them: the same."""
    jobs = [job for n in (260, 319) for job in jobs_of(n, ("off", "keep 0.3"), seed=2, count=10)]
    together = {outcome.job.name: outcome for outcome in engine.run(jobs[::-1])}
    for job in jobs:
        (alone,) = engine.run([job])
        assert distance(alone.log_probabilities, together[job.name].log_probabilities) <= CLOSE
        assert_same_cache(alone, together[job.name])


def assert_same_cache(one: Outcome, other: Outcome) -> None:
    """Raise unless two runs kept the same tokens in the same memory."""
    if one.kept is None or other.kept is None:
        assert one.kept is other.kept
        return
    assert torch.equal(one.kept, other.kept)
    assert one.kept_share == other.kept_share
    assert one.policies == other.policies
    assert one.memory == other.memory


def test_a_larger_recovery_keeps_more(engine: WatchedEngine) -> None:
    length = 333
    prompt, continuation = tokens_of(length)
    jobs = [Job(f"T={t}", prompt, ((RECOVERY, t),), continuation[:3]) for t in RECOVERIES]
    kept = [outcome.kept for outcome in engine.run(jobs)]
    for less, more in pairwise(kept):
        assert less is not None and more is not None
        assert not (less & ~more).any(), "a token is lost where more are kept"
        assert less.sum() < more.sum()
    assert kept[-1] is not None and kept[-1].all()


def test_one_forced_token_is_the_prefills_own(
    engine: WatchedEngine, dense: DenseModel, prefills: dict[int, Prefill]
) -> None:
    length = LENGTHS[0]
    prompt, continuation = tokens_of(length)
    prefill = prefills[length]
    (outcome,) = engine.run([Job("one", prompt, forced=continuation[:1])])
    followed = dense.follow(prefill, prefill.heads(outcome.kept), continuation[:1])
    assert outcome.tokens == continuation[:1]
    assert followed.shape == (1, 512)
    assert distance(outcome.log_probabilities, followed) <= CLOSE


def test_texts_that_follow_one_prompt_do_not_see_each_other(
    dense: DenseModel,
    outcomes: dict[tuple[int, str], Outcome],
    prefills: dict[int, Prefill],
) -> None:
    """All in one pass or each alone: the same rows, of the last tokens only."""
    prefill = prefills[LENGTHS[0]]
    heads = prefill.heads(outcomes[LENGTHS[0], "keep 0.3"].kept)
    texts = [(9, 3), (1, 1), (20, 20), (5, 4), (2, 1)]
    tokens = random_prompts([length for length, _ in texts], seed=77)
    forced = [Forced(ids, scored) for ids, (_, scored) in zip(tokens, texts, strict=True)]
    for text, rows in zip(forced, dense.follow_each(prefill, heads, forced), strict=True):
        alone = dense.follow(prefill, heads, text.tokens)
        assert distance(rows, alone[-text.num_scored :]) <= CLOSE
        assert text.scored == text.tokens[-len(rows) :]


def test_watching_sees_the_attention_to_the_prompt(
    dense: DenseModel, prefills: dict[int, Prefill]
) -> None:
    prefill = prefills[LENGTHS[0]]
    seen = {}

    def watch(layer: int, head: int, attention: Tensor) -> None:
        seen[layer, head] = attention

    dense.watch(prefill, tokens_of(LENGTHS[0])[1][:6], watch)
    assert len(seen) == LAYERS * HEADS
    for attention in seen.values():
        assert attention.shape == (2, 6, LENGTHS[0])
        sums = attention.sum(-1)
        assert (sums <= 1 + 1e-5).all() and (sums > 0).all()
