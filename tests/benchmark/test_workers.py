"""What workers make of an engine's steps."""

import pytest

from fastgen_vllm.benchmark.batch import Chat, summarize
from fastgen_vllm.benchmark.series import SETTLING_STEPS, Point, count_measured
from fastgen_vllm.benchmark.stepped import Compression, Step
from fastgen_vllm.benchmark.steps import plan

NONE = Compression(0.0, 0.0, 0, 1.0)


def step(start: float, end: float, produced: str = "", *, prefilled: int = 0, running: int = 2,
         blocks: int = 5) -> Step:  # fmt: skip
    tokens = tuple((name, (7,)) for name in produced)
    return Step(start, end, prefilled, 0 if prefilled else len(tokens), running, blocks, tokens)


def test_a_batch_is_summed_up_from_its_steps() -> None:
    """Request a, added at 10 s, gets tokens at 11, 13, 14 and 16 s; b, at 11, from 13 s on."""
    steps = [
        step(10, 11, "a", prefilled=64, blocks=7, running=1),
        step(11, 13, "ab", prefilled=64, blocks=9),
        step(13, 14, "ab"),
        step(14, 16, "ab", running=0, blocks=0),
    ]
    compression = Compression(0.5, 0.25, 2, 0.3)
    sample = summarize(steps, {"a": 10, "b": 11}, compression, preemptions=3, threads=2)
    assert sample.metrics == pytest.approx(
        {
            "output_throughput": 7 / 6,
            "ttft_ms": 1500,
            "tpot_ms": (5000 / 3 + 1500) / 2,
            "peak_running": 2,
            "mean_running": 5 / 4,
            "preemptions": 3,
            "peak_blocks": 9,
            "computed_tokens": 128,
            "kept_share": 0.3,
            "seconds": 6,
            "prefill_seconds": 3,
            "decode_step_ms": 1500,
            "profiling_seconds": 0.5,
            "compaction_seconds": 0.25,
            "threads": 2,
        }
    )
    assert sample.timeline is not None
    assert sample.timeline.seconds == [1, 3, 4, 6]
    assert sample.timeline.blocks == [7, 9, 5, 0]
    assert sample.timeline.running == [1, 2, 2, 0]


def test_a_batch_of_single_tokens_has_no_further_ones() -> None:
    sample = summarize([step(0, 1, "a", prefilled=9)], {"a": 0}, NONE, preemptions=0, threads=1)
    assert sample.metrics["tpot_ms"] == 0 and sample.metrics["decode_step_ms"] == 0
    assert sample.metrics["kept_share"] == 1


def test_a_chat_goes_on_with_all_that_was_said() -> None:
    chat = Chat(3, [1, 2], [[5], [6]], output_len=2)
    assert chat.name == "3.0"
    assert [chat.hear((8,)), chat.hear((9,))] == [False, True]
    assert (chat.name, chat.prompt) == ("3.1", [1, 2, 8, 9, 5])
    assert chat.hear((7, 7)) and chat.prompt == [1, 2, 8, 9, 5, 7, 7, 6]
    assert not chat.hear((4, 4)), "it was the last turn"


def test_a_long_timeline_is_thinned() -> None:
    steps = [step(n, n + 1, "a") for n in range(9000)]
    timeline = summarize(steps, {"a": 0}, NONE, 0, 1).timeline
    assert timeline is not None and 1000 < len(timeline.seconds) <= 2000
    assert len(timeline.blocks) == len(timeline.running) == len(timeline.seconds)


def test_only_steps_that_decode_everybody_are_measured() -> None:
    prefill, partial, whole = step(0, 1, "a", prefilled=8), step(0, 1, "a"), step(0, 1, "ab")
    assert count_measured([whole, whole], 2) == 2
    assert count_measured([whole, prefill, whole], 2) == 1
    assert count_measured([whole, partial], 2) == 0
    assert count_measured([], 2) == 0


@pytest.mark.parametrize(("context", "running"), [(128, 1), (1024, 16), (8192, 4)])
def test_no_request_grows_beyond_its_context(context: int, running: int) -> None:
    point = Point(context=context, running=running)
    longest = point.prompt_len(32) + point.spare() + 32
    assert longest == context
    assert point.spare() >= context * running / 2048 + SETTLING_STEPS


def test_two_sweeps_share_their_first_point() -> None:
    points = [(point.context, point.running) for point in plan((64, 128, 256), (2, 4))]
    assert points == [(64, 2), (128, 2), (256, 2), (64, 4)]
