"""Forced continuations through the real engine: what is recorded, and what is left alone."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.evaluation import forced
from fastgen_vllm.evaluation.engine import Job, Outcome
from fastgen_vllm.request import ENABLED, GENERATED, KEEP
from tests.evaluation.watched import WatchedEngine
from tests.integration.tiny import VOCAB, random_prompts
from tests.policy import own

#: Largest difference of two log-probabilities, from one batch to another.
CLOSE = 7e-5

OFF = ((ENABLED, "off"),)
#: Prompt tokens and generated ones. More jobs than run at once, and none ends with another.
SCORED = {"4": 5, "6": 1}  # how many of the last tokens are recorded, where not all
MIXED = [(70, 11), (45, 2), (100, 30), (33, 1), (64, 17), (90, 23), (50, 5), (80, 14)]
FREE = {"2", "5"}  # generate what they like
#: Prompt and generated tokens of jobs that the small pool has room for only at their start.
HUNGRY = [(120, 40), (110, 36), (125, 30), (123, 34)]
ROOMY_BLOCKS, SMALL_BLOCKS, RUNNING = 200, 18, 4


class WriteOnce(dict[int, Tensor]):
    """Rows of a recording, none of which may be recorded again."""

    def __setitem__(self, position: int, row: Tensor) -> None:
        assert position not in self, f"position {position} is recorded twice"
        super().__setitem__(position, row)


class StrictRecording(forced.Recording):
    def __init__(self) -> None:
        super().__init__(rows=WriteOnce())


class Seen(NamedTuple):
    """What the engines did, by job."""

    together: dict[str, Outcome]
    alone: dict[str, Outcome]
    recorded_whole: dict[str, Outcome]  # jobs of which less is recorded otherwise
    moves: int  # slots of the batch that changed hands while all ran
    roomy: dict[str, Outcome]
    crowded: dict[str, Outcome]
    preemptions: dict[str, int]
    refusal: str  # of compressed jobs in the small pool


def mixed_jobs() -> list[Job]:
    prompts = random_prompts([n for n, _ in MIXED], seed=11)
    texts = random_prompts([n for _, n in MIXED], seed=12)
    jobs = []
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        name = str(number)
        if name in FREE:
            jobs.append(Job(name, prompt, max_tokens=len(text)))
        else:
            jobs.append(Job(name, prompt, OFF if number % 2 else (), text, SCORED.get(name)))
    return jobs


def hungry_jobs(arguments: tuple[tuple[str, Any], ...]) -> list[Job]:
    prompts = random_prompts([n for n, _ in HUNGRY], seed=21)
    texts = random_prompts([n for _, n in HUNGRY], seed=22)
    return [
        Job(f"hungry-{number}", prompt, arguments, text)
        for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]


def by_name(outcomes: Iterable[Outcome]) -> dict[str, Outcome]:
    return {outcome.job.name: outcome for outcome in outcomes}


@pytest.fixture(scope="module")
def seen(tiny_base: Path) -> Seen:
    """Everything at once: one engine must be closed before the next is made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forced, "Recording", StrictRecording)
        engine = WatchedEngine(tiny_base, blocks=ROOMY_BLOCKS, max_running=RUNNING)
        try:
            processor, moves = engine._forced, []
            update = processor.update_state

            def note(batch_update: Any) -> None:
                moves.extend(batch_update.moved if batch_update is not None else ())
                update(batch_update)

            patch.setattr(processor, "update_state", note)
            together = by_name(engine.run(mixed_jobs()))
            num_moves = len(moves)
            alone = by_name(engine.run([job])[0] for job in mixed_jobs())
            scored = [job for job in mixed_jobs() if job.name in SCORED]
            recorded_whole = by_name(
                engine.run([replace(job, num_scored=None)])[0] for job in scored
            )
            roomy = by_name(engine.run(hungry_jobs(OFF)))
            assert set(engine.preemptions.values()) == {0}
            assert not processor.recordings, "a recording outlived its job"
        finally:
            engine.close()
        engine = WatchedEngine(tiny_base, blocks=SMALL_BLOCKS, max_running=RUNNING)
        try:
            crowded = by_name(engine.run(hungry_jobs(OFF)))
            preemptions = dict(engine.preemptions)
            with pytest.raises(ValueError) as refused:
                engine.run(hungry_jobs(((KEEP, 0.95), (GENERATED, "keep"))))
        finally:
            engine.close()
    return Seen(
        together, alone, recorded_whole, num_moves, roomy, crowded, preemptions, str(refused.value)
    )


def same(one: Outcome, other: Outcome) -> bool:
    assert one.log_probabilities is not None and other.log_probabilities is not None
    return torch.allclose(one.log_probabilities, other.log_probabilities, rtol=0, atol=CLOSE)


FORCED_JOBS = [job.name for job in mixed_jobs() if job.forced is not None]


@pytest.mark.parametrize("name", FORCED_JOBS)
def test_forced_tokens_come_out(name: str, seen: Seen) -> None:
    outcome = seen.together[name]
    assert outcome.tokens == outcome.job.forced
    assert seen.alone[name].tokens == outcome.job.forced


@pytest.mark.parametrize("name", FORCED_JOBS)
def test_every_position_has_its_row(name: str, seen: Seen) -> None:
    """Although jobs end at different times and others take their slots."""
    assert seen.moves > 0, "no slot moved: the test proves nothing"
    outcome = seen.together[name]
    assert outcome.job.forced is not None and outcome.log_probabilities is not None
    count = SCORED.get(name, len(outcome.job.forced))
    assert outcome.log_probabilities.shape == (count, VOCAB)
    sums = outcome.log_probabilities.exp().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SCORED)
def test_the_last_rows_are_recorded(name: str, seen: Seen) -> None:
    """Those of the same tokens when all are recorded."""
    scored, whole = seen.alone[name].log_probabilities, seen.recorded_whole[name].log_probabilities
    assert scored is not None and whole is not None
    assert torch.allclose(scored, whole[-SCORED[name] :], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", FORCED_JOBS)
def test_rows_are_those_of_a_job_alone(name: str, seen: Seen) -> None:
    assert same(seen.together[name], seen.alone[name])


def test_rows_of_different_jobs_differ(seen: Seen) -> None:
    """Else the comparison above could not fail."""
    first = [seen.alone[name].log_probabilities for name in FORCED_JOBS]
    for index, one in enumerate(first):
        for other in first[:index]:
            assert one is not None and other is not None
            assert float((one[0] - other[0]).abs().max()) > 100 * CLOSE


@pytest.mark.parametrize("name", sorted(FREE))
def test_other_requests_are_left_alone(name: str, seen: Seen) -> None:
    outcome = seen.together[name]
    assert outcome.log_probabilities is None
    assert len(outcome.tokens) == outcome.job.max_tokens, "it ended early: little was compared"
    assert len(set(outcome.tokens)) > 1
    assert outcome.tokens == seen.alone[name].tokens
    assert outcome.text == seen.alone[name].text != ""


@pytest.mark.parametrize("job", hungry_jobs(OFF), ids=lambda job: job.name)
def test_preempted_requests_lose_nothing(job: Job, seen: Seen) -> None:
    """Each position is recorded once, which :class:`WriteOnce` sees to, and rightly."""
    assert sum(seen.preemptions.values()) > 0, "nobody was preempted: the test proves nothing"
    crowded, roomy = seen.crowded[job.name], seen.roomy[job.name]
    assert crowded.tokens == roomy.tokens == job.forced
    assert crowded.log_probabilities is not None and job.forced is not None
    assert crowded.log_probabilities.shape == (len(job.forced), VOCAB)
    assert same(crowded, roomy)


def test_compressed_requests_without_room_are_refused(seen: Seen) -> None:
    """Preempted, they would prefill forced tokens uncompressed: another thing than is measured."""
    assert seen.refusal == "--pool-gib: too small, requests wait for room; give more."


def test_a_policy_that_fails_ends_the_run(tiny_base: Path) -> None:
    """A job that it left uncompressed would look like a policy that costs nothing."""
    config = FastGenConfig(policy=f"{own.MODULE}:Choosy", recovery=0.01)
    even, odd = random_prompts([70, 71], seed=31)
    engine = WatchedEngine(tiny_base, config=config)
    try:
        (outcome,) = engine.run([Job("even", even, max_tokens=2)])
        assert outcome.kept is not None
        engine.run([Job("odd, off", odd, OFF, max_tokens=2)])
        with pytest.raises(ValueError, match=r"^--preset: its policy failed on odd; the log says"):
            engine.run([Job("odd", odd, max_tokens=2)])
    finally:
        engine.close()
