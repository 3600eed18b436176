"""What only a GPU can answer, and what we expect: written down before the first answer.

The questions stand in `docs/cuda.md`, section "What a GPU will answer", too.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from fastgen_vllm.selfcheck.report import Timing
from fastgen_vllm.selfcheck.speed import SDPA, TRITON
from tests.gpu_kit.results import Launch, Ran
from tests.gpu_kit.sizes import FEW, FULL, GRID, LAYERS, MANY, PROMPT, STEPS, USUAL, shape

#: Bytes per second by data sheet.
DATA_SHEET = {"A100": 2.0e12, "H100": 3.35e12, "H200": 4.8e12, "B200": 8.0e12}


class Answer(BaseModel):
    """To one question."""

    question: str
    expected: str
    found: str
    right: bool | None = None  # whether it is what was expected; None: no answer


class Unanswered(Exception):
    """The step that would tell did not."""


class Results:
    """What all steps found."""

    def __init__(self, steps: Sequence[Ran], gpu: str) -> None:
        self.gpu = gpu
        self._steps = {ran.step: ran for ran in steps}

    def step(self, name: str) -> Ran:
        """A step that printed something.

        Raises:
            Unanswered: it was not begun.
        """
        ran = self._steps.get(name)
        if ran is None:
            raise Unanswered(f"step '{name}': not begun")
        return ran

    def timing(self, kernel: str, text: str) -> Timing:
        """Of a kernel on a shape.

        Raises:
            Unanswered: it was not measured.
        """
        for ran in self._steps.values():
            for timing in ran.timings:
                if (timing.kernel, timing.shape) == (kernel, str(shape(text))):
                    return timing
        raise Unanswered(f"{kernel}, {text}: no time")

    def launches(self, kernel: str) -> list[Launch]:
        """Of kernels with that in their name.

        Raises:
            Unanswered: there is none.
        """
        found = [each for each in self.step("profile").launches if kernel in each.kernel]
        if not found:
            raise Unanswered(f"{kernel}: no profile")
        return found


@dataclass(frozen=True)
class Question:
    """One, with what we expect and why."""

    text: str
    expected: str
    look: Callable[[Results], tuple[str, bool]]

    def answer(self, results: Results) -> Answer:
        """What the steps say to it."""
        try:
            found, right = self.look(results)
        except Unanswered as why:
            return Answer(question=self.text, expected=self.expected, found=str(why))
        return Answer(question=self.text, expected=self.expected, found=found, right=right)


def _passes(*steps: str) -> Callable[[Results], tuple[str, bool]]:
    """All that these steps tried is right."""

    def look(results: Results) -> tuple[str, bool]:
        ran = [results.step(name) for name in steps]
        found = "; ".join(f"{each.end}: {each.found}" for each in ran)
        ended = [each.end for each in ran]
        if "failed" not in ended and set(ended) != {"passed"}:
            raise Unanswered(found)
        return found, "failed" not in ended

    return look


def _finds_nothing(tool: str) -> Callable[[Results], tuple[str, bool]]:
    """A sanitizer looked, and counted no faults."""

    def look(results: Results) -> tuple[str, bool]:
        ran = results.step(tool)
        if ran.faults is None:
            raise Unanswered(f"{ran.end}: {ran.found}")
        return f"{ran.faults} faults", ran.faults == 0

    return look


def _tests(pattern: str) -> Callable[[Results], tuple[str, bool]]:
    """All tests of these names passed."""

    def look(results: Results) -> tuple[str, bool]:
        ran = results.step("tests")
        failed = [name for name in ran.failed_tests if re.search(pattern, name)]
        passed = [name for name in ran.passed_tests if re.search(pattern, name)]
        if not passed and not failed:
            raise Unanswered(f"step 'tests': {ran.end} before them")
        return f"{len(passed)} passed, {len(failed)} failed", not failed

    return look


def _within(
    low: float, high: float, unit: str, measure: Callable[[Results], float]
) -> Callable[[Results], tuple[str, bool]]:
    """A number lies there."""

    def look(results: Results) -> tuple[str, bool]:
        value = measure(results)
        return f"{value:.3g}{unit}", low <= value <= high

    return look


def _of_read(kernel: str, *texts: str) -> Callable[[Results], float]:
    """The least share of what memory reads, over some shapes."""
    return lambda results: min(results.timing(kernel, text).of_read for text in texts)


def _over_usual(kernel: str) -> Callable[[Results], float]:
    """Its time over that of the usual step, measured in the same process."""

    def ratio(results: Results) -> float:
        usual = results.step("variants").timings
        if not usual:
            raise Unanswered("step 'variants': no time")
        return results.timing(kernel, USUAL).microseconds / usual[0].microseconds

    return ratio


def _microseconds(kernel: str, text: str) -> Callable[[Results], float]:
    return lambda results: results.timing(kernel, text).microseconds


def _fixed(results: Results) -> float:
    """Microseconds by which a call with many jobs is longer than one with few."""
    one = "decode_attention, one token a head"
    return results.timing(one, MANY).microseconds - results.timing(one, FEW).microseconds


def _memory(results: Results) -> tuple[str, bool]:
    rates = {t.kernel: t.gigabytes for t in results.step("times").timings[:2]}
    if len(rates) < 2:
        raise Unanswered("step 'times': no rate")
    found = ", ".join(f"{kernel} {rate:,.0f} GB/s" for kernel, rate in rates.items())
    for name, rate in DATA_SHEET.items():
        if name in results.gpu:
            return f"{found} ({name}: {rate / 1e9:,.0f})", max(rates.values()) >= 0.8e-9 * rate
    raise Unanswered(f"{found}; no data sheet of {results.gpu or 'this GPU'}")


def _faster(other: str) -> Callable[[Results], float]:
    """The least ratio of another's time to ours, from 8 requests of 2,048 tokens up."""

    def ratio(results: Results) -> float:
        timings = [results.timing("decode_attention", text) for text in LARGE]
        if any(other not in timing.ratios for timing in timings):
            raise Unanswered(f"{other}: no time")
        return min(timing.ratios[other] for timing in timings)

    return ratio


def _called_one_by_one(results: Results) -> float:
    (ratio,) = results.timing(f"{LAYERS} layers", STEPS[0]).ratios.values()
    return ratio


def _metric(name: str, kernel: str, number: int = 0) -> Callable[[Results], float]:
    """Of one launch of a kernel, in percent."""

    def value(results: Results) -> float:
        metrics = results.launches(kernel)[number:]
        if not metrics or name not in metrics[0].metrics:
            raise Unanswered(f"{kernel}: no {name}")
        return metrics[0].metrics[name]

    return value


def _conflicts(kernel: str) -> Callable[[Results], float]:
    """Percent of passes through shared memory that bank conflicts add."""
    conflicts = _metric("l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum", kernel)
    passes = _metric("l1tex__data_pipe_lsu_wavefronts_mem_shared.sum", kernel)
    return lambda results: 100 * conflicts(results) / max(passes(results), 1)


DRAM = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
ISSUE = "smsp__issue_active.avg.pct_of_peak_sustained_active"
WARPS = "sm__warps_active.avg.pct_of_peak_sustained_active"
LARGE = [text for text in GRID if not text.startswith("1x") and "x256x" not in text]
SELF_CHECKS = tuple(f"self-check, {dtype}" for dtype in ("float32", "float16", "bfloat16"))

#: In the order of the table.
QUESTIONS = (
    Question(
        "Does the file load beside this torch, and does every op's first call give the "
        "reference's result?",
        "yes, in all dtypes",
        _passes("first calls"),
    ),
    Question(
        "Are all ops right: dtypes, D 32 to 256, G 1 to 16, both orders of the cache, called and "
        "captured?",
        "yes; also the layout of `mma` fragments and the rounding of `ex2.approx`",
        _passes("tests"),
    ),
    Question(
        "Are requests' lives (profile, choose, compact, store, decode) those of the references?",
        "yes, in all dtypes and both orders",
        _passes(*SELF_CHECKS),
    ),
    Question("Does the worker's runtime do as on the CPU?", "yes, in all presets", _passes("life")),
    Question(
        "Can the first call of a process be captured in a graph?",
        "yes, with lazily loaded kernels",
        _passes("cold capture"),
    ),
    Question(
        "Do equal calls and replays give equal bits?", "yes, 200 of 200", _tests("equal_|bits_of_")
    ),
    Question("Does a call wait for its own stream?", "yes", _tests("another_stream")),
    Question("Is the end of a pool beyond 32 bits found?", "yes", _tests("beyond_32_bits")),
    Question("How fast is memory?", "80 % of the data sheet, copying or reading", _memory),
    Question(
        "`decode_attention`, 64 requests of 2,048 tokens: what share of what memory reads?",
        "85 % or more",
        _within(0.85, 1.2, " of read", _of_read("decode_attention", USUAL)),
    ),
    Question(
        "... and from 8 requests of 2,048 tokens up?",
        "75 % or more everywhere",
        _within(0.75, 1.2, " of read", _of_read("decode_attention", *LARGE)),
    ),
    Question(
        "... beside PyTorch's attention over K and V in order?",
        "as fast or faster",
        _within(1, 20, " times as fast", _faster(SDPA)),
    ),
    Question(
        "... beside a paged kernel in Triton?",
        "as fast or faster",
        _within(1, 20, " times as fast", _faster(TRITON)),
    ),
    Question(
        "One request of 8,192 tokens: does merging, which is serial there, take as long as "
        "reading?",
        "yes: less than half of what memory reads",
        _within(0, 0.5, " of read", _of_read("decode_attention", "1x8192x8x4x128")),
    ),
    Question(
        "What does a call cost for 256 requests that keep nothing, beside one request: is it the "
        "search for a block's first page (`find_start`)?",
        "5 to 8 µs more",
        _within(5, 8, " µs", _fixed),
    ),
    Question(
        "Are heads that differ 10:1 as fast as equal ones?",
        "within 10 %",
        _within(0, 1.1, " of the time", _over_usual("decode_attention, ragged")),
    ),
    Question(
        "What do heads cost that value tokens by attention?",
        "at most 10 %",
        _within(0, 1.1, " of the time", _over_usual("decode_attention, by value")),
    ),
    Question(
        "... and by energy?",
        "at most 10 %",
        _within(0, 1.1, " of the time", _over_usual("decode_attention, by energy")),
    ),
    Question(
        "What do block tables as wide as 131,072 tokens cost, most of it unused?",
        "at most 5 %",
        _within(0, 1.05, " of the time", _over_usual("decode_attention, rows for 131,072 tokens")),
    ),
    Question(
        "G 7: do 213 registers, so two blocks a multiprocessor, cost bandwidth?",
        "yes: 50 to 70 % of what memory reads",
        _within(0.5, 0.7, " of read", _of_read("decode_attention", "64x2048x8x7x128")),
    ),
    Question(
        "... and G 8?",
        "50 to 70 %",
        _within(0.5, 0.7, " of read", _of_read("decode_attention", "64x2048x8x8x128")),
    ),
    Question(
        "`attention_mass`, 256 queries of 8,192 tokens?",
        "40 to 80 µs",
        _within(40, 80, " µs", _microseconds("attention_mass, 256 queries", PROMPT)),
    ),
    Question(
        "`compact`, 30 % of 8 layers of 8,192 tokens, bytes read and written?",
        "70 % or more of what memory reads",
        _within(0.7, 1.3, " of read", _of_read("compact, 30% of 8 layers", PROMPT)),
    ),
    Question(
        "`store`, 64 requests of full heads with 2,048 slots: is it latency, and not bandwidth?",
        "10 to 40 µs, not the 3 µs of the bytes",
        _within(10, 40, " µs", _microseconds("store, full heads", FULL[1])),
    ),
    Question(
        "What does the host cost that calls 32 layers' kernels one by one, beside one graph?",
        "2 to 10 times the time, one request",
        _within(2, 10, " times", _called_one_by_one),
    ),
    *(
        Question(f"Does {tool} find {what}?", "nothing", _finds_nothing(tool))
        for tool, what in (
            ("memcheck", "an access out of bounds or misaligned"),
            (
                "racecheck",
                "a race in shared memory (`cp.async` writes what the same thread has read)",
            ),
            ("initcheck", "memory that is read and was never written"),
            ("synccheck", "a barrier that not all threads reach"),
        )
    ),
    Question(
        "`decode_attention`, G 4: how busy is memory in the kernel itself?",
        "85 % of the peak or more",
        _within(85, 100, " %", _metric(DRAM, "decode_pieces")),
    ),
    Question(
        "... how many warps are there?",
        "25 % of what a multiprocessor holds: 4 blocks",
        _within(22, 28, " %", _metric(WARPS, "decode_pieces")),
    ),
    Question(
        "... G 8: is it instructions that it waits for?",
        "yes: 60 % of issue slots or more",
        _within(60, 100, " %", _metric(ISSUE, "decode_pieces", 1)),
    ),
    *(
        Question(
            f"Bank conflicts of `{kernel}`?",
            "at most 5 % more passes",
            _within(0, 5, " %", _conflicts(kernel)),
        )
        for kernel in ("decode_pieces", "mass_add")
    ),
)
