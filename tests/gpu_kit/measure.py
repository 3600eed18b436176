"""Times of the kernels, a line of JSON each: ``python -m tests.gpu_kit.measure decode``."""

import sys
from collections.abc import Callable, Iterator

import torch

from fastgen_vllm import ops
from fastgen_vllm.benchmark import kernels
from fastgen_vllm.benchmark.kernels import Shape
from fastgen_vllm.geometry import StoreRule
from fastgen_vllm.ops.layout import Layout
from fastgen_vllm.selfcheck import speed
from fastgen_vllm.selfcheck.report import Timing
from fastgen_vllm.selfcheck.speed import Bench, Call, Case, same_call
from tests.gpu.device import DEVICE, DRY, stand_in
from tests.gpu_kit.sizes import FEW, FULL, GRID, LAYERS, MANY, PROMPT, STEPS, USUAL, shape

#: What the rate of a copy counts: bytes read and written.
COPIED_BYTES = 2**20 if DRY else 2**32


def memory(bench: Bench) -> Iterator[Timing]:
    """The ceiling."""
    there = Shape(1, COPIED_BYTES, 1, 1, 1)
    read = torch.ones(COPIED_BYTES // 4, device=DEVICE)
    written = torch.empty_like(read)
    yield bench.timing("sum", there, COPIED_BYTES, {"": lambda _: read.sum()})
    yield bench.timing("copy", there, 2 * COPIED_BYTES, {"": lambda _: written.copy_(read)})


def decode(bench: Bench) -> Iterator[Timing]:
    """``decode_attention`` over R and what is kept."""
    for text in (USUAL, *GRID):  # the usual one twice: how far times scatter
        yield bench.decode(Case(shape(text), beside=True))


def variants(bench: Bench) -> Iterator[Timing]:
    """``decode_attention`` where something is not as usual."""
    usual = shape(USUAL)
    yield bench.decode(Case(usual))
    yield bench.decode(Case(usual, "ragged", ragged=True))
    yield bench.decode(Case(usual, "by value", rule=StoreRule.BY_VALUE))
    yield bench.decode(Case(usual, "by energy", rule=StoreRule.BY_ENERGY))
    yield bench.decode(Case(usual, "rows for 131,072 tokens", row_tokens=131_072))
    yield bench.decode(Case(shape(USUAL, 32), "pages of 32"))
    yield bench.decode(Case(usual, "float16", dtype=torch.float16))
    yield bench.decode(Case(usual, "float32", dtype=torch.float32))
    for group in (1, 2, 7, 8, 16):
        yield bench.decode(Case(shape(f"64x2048x8x{group}x128")))
    for head_size in (64, 96, 256):
        yield bench.decode(Case(shape(f"64x2048x8x4x{head_size}")))
    for text in (FEW, MANY):
        yield bench.decode(Case(shape(text), "one token a head"))


def others(bench: Bench) -> Iterator[Timing]:
    """Profiling, compacting, storing."""
    yield from bench.prompt(shape(PROMPT))
    for text in FULL:
        yield bench.store(shape(text))


def layers(bench: Bench) -> Iterator[Timing]:
    """All layers' ``store`` and ``decode_attention``, in one graph and called one by one."""
    for text in STEPS:
        step, random = shape(text), bench.random()
        lengths = torch.full((step.requests, step.heads), step.tokens)
        dtype, rule = speed.DTYPE, StoreRule.BY_VALUE
        made = kernels.make_decode(
            step, dtype, lengths, rule, random, layout=bench.layout, layers=LAYERS
        )
        kernels.fill_heads(step, made)
        query = kernels.random_query(step, dtype, random)
        calls: list[Call] = []
        for layer in range(LAYERS):
            stored = kernels.store_arguments(step, made, random, layer)
            calls.append(same_call(ops.store, stored))
            calls.append(kernels.our_attention(step, [made], query, layer))
        num_bytes = LAYERS * int(lengths.sum()) * 2 * dtype.itemsize * step.head_size

        def whole(number: int, calls: list[Call] = calls) -> None:
            for call in calls:
                call(number)

        timing = bench.timing(f"{LAYERS} layers", step, num_bytes, {"": whole})
        (seconds,) = bench.medians([whole], graph=False)
        timing.others["called one by one"] = seconds * 1e6
        yield timing


class Profiled(Bench):
    """Calls once what would be timed, where a profiler looks."""

    read = 1.0

    def medians(self, sides: list[Call], *, graph: bool = True) -> list[float]:
        """No times: one call of ours."""
        side = sides[0]
        side(0)
        if not DRY:
            torch.cuda.synchronize()
            with torch.cuda.profiler.profile():
                side(1)
                torch.cuda.synchronize()
        return [1.0] * len(sides)


def launches(_: Bench) -> Iterator[Timing]:
    """One launch of each kernel, for a profiler."""
    bench = Profiled(DEVICE, Layout.HEADS_FIRST)
    for group in (4, 8):
        yield bench.decode(Case(shape(f"64x2048x8x{group}x128")))
    yield from bench.prompt(shape(PROMPT))
    yield bench.store(shape(USUAL))


WHAT: dict[str, Callable[[Bench], Iterator[Timing]]] = {
    each.__name__: each for each in (memory, decode, variants, others, layers, launches)
}


def main(names: list[str]) -> None:
    """Measure; every result is printed at once."""
    stand_in()
    if DRY:
        speed.CALLS, speed.CALLS_OF_A_SAMPLE, speed.MOST_COPIES = 1, 1, 2
        kernels.ROTATED_BYTES = 1e6
    bench = Bench(DEVICE, Layout.HEADS_FIRST)
    for name in names:
        for timing in WHAT[name](bench):
            if name != "launches":
                print(timing.model_dump_json(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
