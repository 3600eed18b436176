"""Kernels alone: bytes per second beside stock vLLM's attention and what the machine can read.

Every call reads other buffers than the calls before, so that no K or V comes from a cache. Sides
take turns call by call; a number is the median over calls.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from fastgen_vllm import ops
from fastgen_vllm.benchmark.facts import machine
from fastgen_vllm.benchmark.options import check_file, positive, positives
from fastgen_vllm.geometry import HeadField, StoreRule
from fastgen_vllm.machine import cpu_name
from fastgen_vllm.memory import use_huge_pages
from fastgen_vllm.ops.layout import Layout
from fastgen_vllm.pages import stock_records
from fastgen_vllm.pages.size import cdiv

#: Bytes that are read between two uses of a buffer: several times a large last-level cache.
ROTATED_BYTES = 400e6
SKEW = 10  # longest over shortest head of the ragged case
SHAPES = "32x1024x3x3x64,16x2048x8x4x128,16x2048x8x1x128"
OBSERVED = 256  # queries of a profile
KEPT = 0.3  # share that a compaction copies
LAYERS = 8  # of a compaction


@dataclass(frozen=True)
class Shape:
    """One layer's decode step."""

    requests: int  # R
    tokens: int  # N of every head
    heads: int  # H
    group: int  # G
    head_size: int  # D
    page_slots: int = 32  # S

    @classmethod
    def parse(cls, text: str, page_slots: int = 32) -> "Shape":
        """Read ``RxNxHxGxD``."""
        try:
            numbers = [int(part) for part in text.split("x")]
            if len(numbers) != 5 or min(numbers) < 1:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"--shapes={text!r} must be RxNxHxGxD, five positive numbers: requests, tokens, "
                f"KV heads, query heads per KV head, head size; e.g. {SHAPES.split(',')[0]}"
            ) from None
        requests, tokens, heads, group, head_size = numbers
        return cls(requests, tokens, heads, group, head_size, page_slots)

    def __str__(self) -> str:
        return f"{self.requests}x{self.tokens}x{self.heads}x{self.group}x{self.head_size}"


class Result(NamedTuple):
    """One line of the table."""

    kernel: str
    shape: str
    isa: str
    threads: int
    microseconds: float
    gigabytes: float  # per second, of K and V read; of attention_mass, of K once for each query
    of_read: float  # share of what the machine reads
    stock_microseconds: float | None = None
    ratio: float | None = None  # stock's time over ours


@dataclass
class Decode:
    """Arguments of ``decode_attention`` and of stock's attention over the same pages."""

    arena: Tensor  # [L, B, H, 2*S, D], in pairs, or as in a GPU
    blocks: Tensor  # [R, M] int32
    heads: Tensor  # [R, L, H, 13] int32
    values: Tensor  # [B, L*H, S]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``kernels``."""
    parser.add_argument("--shapes", default=SHAPES, help="RxNxHxGxD, comma-separated")
    parser.add_argument(
        "--threads", type=positives, default=(1, 2), help="numbers of threads, comma-separated"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--calls", type=positive, default=41, help="measured calls of each side")
    parser.add_argument("--isa", help="instruction set of both sides; default: the best")
    parser.add_argument("--json", type=Path, help="write all numbers here")


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print a Markdown table."""
    shapes = [Shape.parse(text) for text in arguments.shapes.split(",")]
    check_file("--json", arguments.json)
    dtype = getattr(torch, arguments.dtype)
    load_stock(arguments.isa)
    if arguments.isa:
        torch.ops.fastgen.set_isa(arguments.isa)
    print(f"{cpu_name()}, {ops.isa()}, {arguments.dtype}, medians of {arguments.calls} calls")
    print("| kernel | shape | threads | µs | GB/s | of read | stock µs | stock / ours |")
    print("|---|---|---|---|---|---|---|---|")
    results = []
    for count in arguments.threads:
        torch.set_num_threads(count)
        bandwidth = read_bandwidth(arguments.calls)
        print(f"| read | | {count} | | {bandwidth / 1e9:.1f} | | | |", flush=True)
        for shape in shapes:
            for result in measure(shape, dtype, arguments.calls, bandwidth):
                results.append(result)
                print(line(result), flush=True)
    if arguments.json:
        facts = {**machine(), "dtype": arguments.dtype, "calls": arguments.calls}
        rows = [result._asdict() for result in results]
        arguments.json.write_text(json.dumps({"facts": facts, "results": rows}, indent=2))
    return 0


def line(r: Result) -> str:
    """One row of the table."""
    stock = "|" if r.ratio is None else f"{r.stock_microseconds:.0f} | {r.ratio:.2f}"
    return (
        f"| {r.kernel} | {r.shape} | {r.threads} | {r.microseconds:.0f} | {r.gigabytes:.1f} "
        f"| {r.of_read:.0%} | {stock} |"
    )


def load_stock(isa: str | None) -> None:
    """Load vLLM's kernels, those for AVX2 if our side uses AVX2."""
    no_avx512 = patch("torch.cpu._is_avx512_supported", return_value=False)
    with no_avx512 if isa == "avx2" else nullcontext():
        import vllm._custom_ops  # noqa: F401


def read_bandwidth(calls: int) -> float:
    """Bytes per second of a sum over 400 MB."""
    numbers = torch.ones(int(ROTATED_BYTES) // 4)
    (seconds,) = medians([lambda _: numbers.sum()], calls)
    return numbers.numel() * 4 / seconds


def medians(sides: Sequence[Callable[[int], object]], calls: int) -> list[float]:
    """Seconds per call of each side; sides take turns."""
    samples: list[list[float]] = [[] for _ in sides]
    for number in range(calls + 2):
        for side, call in enumerate(sides):
            start = time.perf_counter()
            call(number)
            samples[side].append(time.perf_counter() - start)
    return [statistics.median(seconds[2:]) for seconds in samples]


def measure(shape: Shape, dtype: torch.dtype, calls: int, bandwidth: float) -> Iterator[Result]:
    """All kernels of one shape."""
    yield from measure_decode(shape, dtype, calls, bandwidth)
    generator = torch.Generator().manual_seed(0)
    count = OBSERVED * shape.tokens * shape.heads * shape.head_size * dtype.itemsize
    observed = mass_arguments(shape, dtype, generator)
    seconds = medians([lambda _: ops.attention_mass(*observed)], calls // 4)
    yield _result(f"attention_mass, {OBSERVED} queries", shape, count, seconds, bandwidth)
    kept = int(KEPT * shape.tokens)
    count = LAYERS * shape.heads * kept * 2 * dtype.itemsize * shape.head_size
    copied = compact_arguments(shape, dtype, kept, generator)
    seconds = medians([lambda _: ops.compact(*copied)], calls // 4)
    yield _result(f"compact, {KEPT:.0%} of {LAYERS} layers", shape, count, seconds, bandwidth)


def measure_decode(
    shape: Shape, dtype: torch.dtype, calls: int, bandwidth: float
) -> Iterator[Result]:
    """``decode_attention`` of one shape: beside stock, with values, and over ragged heads."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.full((shape.requests, shape.heads), shape.tokens)
    cases = [
        ("decode_attention", uniform, StoreRule.APPEND),
        ("decode_attention, values kept", uniform, StoreRule.BY_ENERGY),
        (f"decode_attention, ragged {SKEW}:1", skewed(uniform, generator), StoreRule.APPEND),
    ]
    for name, lengths, rule in cases:
        count = int(lengths.sum()) * 2 * dtype.itemsize * shape.head_size
        copies = max(2, int(ROTATED_BYTES / count) + 1)
        buffers = [make_decode(shape, dtype, lengths, rule, generator) for _ in range(copies)]
        sides = decode_sides(shape, dtype, buffers, lengths, generator)
        seconds = medians(sides if lengths is uniform else sides[:1], calls)
        yield _result(name, shape, count, seconds, bandwidth)


def _result(
    kernel: str, shape: Shape, count: int, seconds: list[float], bandwidth: float
) -> Result:
    """A line of the table, of the bytes that are read and the seconds of ours and of stock."""
    rate = count / seconds[0]
    numbers = (seconds[0] * 1e6, rate / 1e9, rate / bandwidth)
    stock = (seconds[1] * 1e6, seconds[1] / seconds[0]) if len(seconds) > 1 else ()
    return Result(kernel, str(shape), ops.isa(), torch.get_num_threads(), *numbers, *stock)


def skewed(uniform: Tensor, generator: torch.Generator) -> Tensor:
    """Lengths of the same sum, from 1 to ``SKEW`` in proportion, shuffled."""
    weights = torch.linspace(1, SKEW, uniform.numel(), device=uniform.device)
    lengths = (weights * (uniform.sum() / weights.sum())).round().long()
    order = torch.randperm(len(lengths), generator=generator, device=generator.device)
    return lengths[order].view_as(uniform)


def in_pairs(dtype: torch.dtype) -> bool:
    """Whether pages are in vLLM's order for AMX, as an engine's would be."""
    return ops.isa() == "amx" and dtype == torch.bfloat16


def random_cache(
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype,
    generator: torch.Generator,
    layout: Layout | None = None,
) -> Tensor:
    """A cache [L, B, H, 2*S, D] in the order that an engine's would have; a layout is a GPU's."""
    L, B, H, rows, D = shape
    if layout is None:
        arena = torch.randn(shape, generator=generator).to(dtype)
        return arena.view(L, B, H, rows, -1, 2) if in_pairs(dtype) else arena
    axes = layout.value  # its own inverse
    size = [(L, B, H, rows // 2, 2 * D)[axis] for axis in axes]
    arena = torch.randn(size, generator=generator, device=generator.device, dtype=dtype)
    return arena.permute(axes)


def make_decode(
    shape: Shape,
    dtype: torch.dtype,
    lengths: Tensor,
    rule: StoreRule,
    generator: torch.Generator,
    *,
    layout: Layout | None = None,
    layers: int = 1,
    row_tokens: int = 0,
) -> Decode:
    """Random K and V on scattered pages; heads lie side by side in a block, as stock's do.

    Args:
        lengths: [R, H], of a head in every layer.
        generator: on the device where everything will be.
        layout: of a GPU's cache; None: the CPU's.
        row_tokens: for which a row of the block table has entries, if more than are kept.
    """
    device, page_slots = generator.device, shape.page_slots
    used, width = (cdiv(tokens, page_slots) for tokens in (int(lengths.max()), row_tokens))
    blocks, lanes = shape.requests * used, layers * shape.heads
    arena = random_cache(
        (layers, blocks, shape.heads, 2 * page_slots, shape.head_size), dtype, generator, layout
    )
    if device.type == "cpu":
        use_huge_pages(arena)  # as the worker does
    heads = torch.zeros(shape.requests, layers, shape.heads, len(HeadField), dtype=torch.int32)
    heads[..., HeadField.FIRST_PAGE] = torch.arange(lanes).view(layers, -1)
    heads[..., HeadField.NUM_PAGES] = 1
    heads[..., HeadField.GROWTH_PAGE] = heads[..., HeadField.FIRST_PAGE] + lanes
    heads[..., HeadField.GROWTH_STRIDE] = lanes
    heads[..., HeadField.GROWTH_PERIOD] = 1
    heads[..., HeadField.LENGTH] = lengths.int().cpu()[:, None]
    heads[..., HeadField.RULE] = rule
    rows = torch.zeros(shape.requests, max(used, width), dtype=torch.int32, device=device)
    order = torch.randperm(blocks, generator=generator, device=device)
    rows[:, :used] = order.view(shape.requests, used)
    values = torch.zeros(blocks, lanes, page_slots, device=device)
    return Decode(arena, rows, heads.to(device), values)


def decode_sides(
    shape: Shape,
    dtype: torch.dtype,
    buffers: list[Decode],
    lengths: Tensor,
    generator: torch.Generator,
) -> list[Callable[[int], object]]:
    """Ours and stock's attention, as functions of the call's number."""
    query = random_query(shape, dtype, generator)
    return [
        our_attention(shape, buffers, query),
        stock_attention(shape, buffers, query, lengths),
    ]


def random_query(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """[R, H*G, D], on the generator's device."""
    size = (shape.requests, shape.heads * shape.group, shape.head_size)
    return torch.randn(size, generator=generator, device=generator.device).to(dtype)


def our_attention(
    shape: Shape, buffers: list[Decode], query: Tensor, layer: int = 0
) -> Callable[[int], object]:
    """Ours, on the device of the query; buffers take turns."""
    token_index = torch.arange(shape.requests, device=query.device)
    lanes, scale = token_index.int(), shape.head_size**-0.5
    output = torch.empty_like(query)

    def ours(number: int) -> None:
        buffer = buffers[number % len(buffers)]
        ops.decode_attention(
            query,
            token_index,
            lanes,
            buffer.blocks,
            layer,
            scale,
            "mean",
            buffer.arena,
            buffer.heads,
            buffer.values,
            output,
        )

    return ours


def stock_attention(
    shape: Shape, buffers: list[Decode], query: Tensor, lengths: Tensor
) -> Callable[[int], object]:
    """The attention of vLLM's CPU backend, over heads of uniform lengths."""
    import vllm._custom_ops as stock_ops

    dtype, scale = query.dtype, shape.head_size**-0.5
    output = torch.empty_like(query)
    start = torch.arange(shape.requests + 1, dtype=torch.int32)
    seq_lens = lengths[:, 0].int().contiguous()
    metadata = stock_ops.cpu_attn_get_scheduler_metadata(
        num_reqs=shape.requests,
        num_heads=shape.heads * shape.group,
        num_kv_heads=shape.heads,
        head_dim=shape.head_size,
        seq_lens=seq_lens,
        dtype=query.dtype,
        query_start_loc=start,
        causal=True,
        sliding_window_size=-1,
        isa="amx" if in_pairs(dtype) else "vec",
        enable_kv_split=True,
        dynamic_causal=None,
        kv_cache_dtype="auto",
    )

    def stock(number: int) -> None:
        buffer = buffers[number % len(buffers)]
        key, value = buffer.arena[0].flatten(3).chunk(2, dim=2)
        stock_ops.cpu_attention_with_kv_cache(
            query=query,
            key_cache=key,
            value_cache=value,
            output=output,
            query_start_loc=start,
            seq_lens=seq_lens,
            scale=scale,
            causal=True,
            alibi_slopes=None,
            sliding_window=-1,
            block_table=buffer.blocks,
            softcap=0,
            scheduler_metadata=metadata,
            s_aux=None,
        )

    return stock


def store_arguments(
    shape: Shape, made: Decode, generator: torch.Generator, layer: int = 0
) -> tuple[object, ...]:
    """Storing a token of every request; full heads (``ROOM``) replace one of theirs."""
    device, R = generator.device, shape.requests
    token = (2, R, shape.heads, shape.head_size)
    new = torch.randn(token, generator=generator, device=device).to(made.arena.dtype)
    requests = torch.arange(R, device=device)
    positions = torch.zeros(made.values.shape, dtype=torch.int32, device=device)
    position = torch.full((R,), shape.tokens, dtype=torch.int32, device=device)
    return (
        *(*new, requests, requests.int(), made.blocks, position, torch.zeros_like(position)),
        *(layer, made.arena, made.heads, positions, made.values),
    )


def fill_heads(shape: Shape, made: Decode) -> None:
    """The last page that heads are granted becomes their last: they replace, and do not grow."""
    made.heads[..., HeadField.ROOM] = shape.page_slots + 1


def mass_arguments(
    shape: Shape, dtype: torch.dtype, generator: torch.Generator, layout: Layout | None = None
) -> tuple[Tensor, Tensor, int, Tensor, Tensor, int, float, str, Tensor, Tensor]:
    """Profiling the last queries of one prompt in one layer; K stays in the cache, as it would."""
    device = generator.device
    blocks = cdiv(shape.tokens, shape.page_slots)
    observed = min(OBSERVED, shape.tokens)
    page = (1, blocks, shape.heads, 2 * shape.page_slots, shape.head_size)
    arena = random_cache(page, dtype, generator, layout)
    queries = (observed, shape.heads * shape.group, shape.head_size)
    query = torch.randn(queries, generator=generator, device=device).to(dtype)
    row = torch.randperm(blocks, generator=generator, device=device).int()
    mass, energy = torch.zeros(2, shape.heads, shape.tokens, device=device)
    scale, first = shape.head_size**-0.5, shape.tokens - observed
    heads = stock_records(1, shape.heads).to(device)
    return query, arena, 0, row, heads, first, scale, "mean", mass, energy


def compact_arguments(
    shape: Shape,
    dtype: torch.dtype,
    kept: int,
    generator: torch.Generator,
    layout: Layout | None = None,
) -> tuple[Tensor, ...]:
    """Compacting one prompt: a random share of the tokens of every head."""
    device = generator.device
    prompt, pages = cdiv(shape.tokens, shape.page_slots), cdiv(kept, shape.page_slots)
    row = torch.randperm(prompt + pages, generator=generator, device=device).int()
    page = (LAYERS, prompt + pages, shape.heads, 2 * shape.page_slots, shape.head_size)
    arena = random_cache(page, dtype, generator, layout)
    num_heads = LAYERS * shape.heads
    weights = torch.rand(num_heads, shape.tokens, generator=generator, device=device)
    tokens = weights.argsort(-1)[:, :kept].sort(-1).values.flatten().int()
    heads = torch.zeros(LAYERS, shape.heads, len(HeadField), dtype=torch.int32)
    heads[..., HeadField.FIRST_PAGE] = torch.arange(num_heads).view(LAYERS, -1) * pages
    heads[..., HeadField.NUM_PAGES] = pages
    heads[..., HeadField.LENGTH] = kept
    slots = (prompt + pages, num_heads, shape.page_slots)
    return (
        arena,
        row[:prompt],
        stock_records(LAYERS, shape.heads).to(device),
        arena[:, :0],
        row[prompt:],
        tokens,
        tokens,
        torch.arange(num_heads + 1, device=device) * kept,
        torch.ones(num_heads * kept, device=device),
        heads.to(device),
        torch.zeros(slots, dtype=torch.int32, device=device),
        torch.zeros(slots, device=device),
    )
