"""Times of the kernels beside others' attention and beside what the device reads.

Calls are measured in runs between two waits for the device, on a GPU as replays of a CUDA graph, so
that starting a kernel costs what it costs in a model. Bytes are the least possible: K once for all
queries of ``attention_mass``. Others are vLLM's attention and a kernel in Triton, where those are
installed, and PyTorch's, over K and V that lie in order as in no cache.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastgen_vllm import ops
from fastgen_vllm.benchmark import kernels
from fastgen_vllm.benchmark.kernels import Shape
from fastgen_vllm.geometry import StoreRule
from fastgen_vllm.ops.layout import Layout, from_pairs, to_cuda_layout
from fastgen_vllm.selfcheck.report import Timing

#: By the device's type; vLLM's pages have 16 slots on a GPU.
SHAPES = {
    "cpu": ("8x1024x3x3x64",),
    "cuda": ("1x8192x8x4x128", "64x2048x8x4x128", "16x8192x8x4x128", "64x1024x3x3x64"),
}
PAGE_SLOTS = {"cpu": 32, "cuda": 16}
CALLS = 11  # samples
CALLS_OF_A_SAMPLE = 20
READ_BYTES = 2**30
MOST_COPIES = 64  # of a cache that is so small that it takes turns with others
DTYPE = torch.bfloat16
VLLM, SDPA, TRITON = "vLLM's attention", "PyTorch's attention", "a kernel in Triton"
#: Programs that share a head's tokens in Triton's kernel; the best is taken.
SPLITS = (1, 2, 4, 8, 16, 32, 64)

#: A call, by its number: buffers take turns.
Call = Callable[[int], object]


@dataclass(frozen=True)
class Case:
    """What is timed of ``decode_attention``."""

    shape: Shape
    name: str = ""
    dtype: torch.dtype = DTYPE
    rule: StoreRule = StoreRule.APPEND
    ragged: bool = False
    row_tokens: int = 0  # for which a row of the block table has entries, if more than are kept
    beside: bool = False  # others' attention is timed as well


def time_kernels(device: torch.device) -> Iterator[Timing]:
    """Time the kernels on every shape."""
    bench = Bench(device, Layout.HEADS_FIRST if device.type == "cuda" else None)
    for text in SHAPES[device.type]:
        shape = Shape.parse(text, PAGE_SLOTS[device.type])
        yield bench.decode(Case(shape, beside=True))
        yield bench.decode(Case(shape, "values kept", rule=StoreRule.BY_ENERGY))
        yield bench.decode(Case(shape, "ragged", ragged=True))
        yield from bench.prompt(shape)
        yield bench.store(shape)


class Bench:
    """A device on which kernels are timed.

    Args:
        layout: of a GPU's cache; None: the CPU's.
    """

    def __init__(self, device: torch.device, layout: Layout | None) -> None:
        self.device = device
        self.layout = layout

    def random(self) -> torch.Generator:
        """The same numbers in every case."""
        return torch.Generator(self.device).manual_seed(0)

    @cached_property
    def read(self) -> float:
        """Bytes per second of a sum over a gigabyte."""
        if self.device.type == "cpu":
            return kernels.read_bandwidth(CALLS)
        numbers = torch.ones(READ_BYTES // 4, device=self.device)
        (seconds,) = self.medians([lambda _: numbers.sum()])
        return READ_BYTES / seconds

    def medians(self, sides: list[Call], *, graph: bool = True) -> list[float]:
        """Seconds of a call of each side; sides take turns."""
        seconds = kernels.medians([self._sampled(side, graph) for side in sides], CALLS)
        return [each / CALLS_OF_A_SAMPLE for each in seconds]

    def timing(
        self, kernel: str, shape: Shape, num_bytes: float, calls: Mapping[str, Call]
    ) -> Timing:
        """Times of ours, which is the first of the calls, and of others."""
        ours, *others = self.medians(list(calls.values()))
        return Timing(
            kernel=kernel,
            shape=str(shape),
            microseconds=ours * 1e6,
            gigabytes=num_bytes / ours / 1e9,
            of_read=num_bytes / ours / self.read,
            others={n: each * 1e6 for n, each in zip(list(calls)[1:], others, strict=True)},
        )

    def decode(self, case: Case) -> Timing:
        """A step's attention of one layer."""
        random, shape = self.random(), case.shape
        size = (shape.requests, shape.heads)
        lengths = torch.full(size, shape.tokens, device=self.device)
        if case.ragged:
            lengths = kernels.skewed(lengths, random)
        num_bytes = int(lengths.sum()) * 2 * case.dtype.itemsize * shape.head_size
        copies = max(2, int(kernels.ROTATED_BYTES / num_bytes) + 1)  # more than an L2 cache
        there = [
            kernels.make_decode(
                *(shape, case.dtype, lengths, case.rule, random),
                layout=self.layout,
                row_tokens=case.row_tokens,
            )
            for _ in range(min(copies, MOST_COPIES))
        ]
        query = kernels.random_query(shape, case.dtype, random)
        calls: dict[str, Call] = {"": kernels.our_attention(shape, there, query)}
        if case.beside:
            calls |= self._others(shape, there, query)
        name = ", ".join(filter(None, ("decode_attention", case.name)))
        return self.timing(name, shape, num_bytes, calls)

    def prompt(self, shape: Shape) -> Iterator[Timing]:
        """Profiling and compacting a prompt."""
        random = self.random()
        token_bytes = shape.heads * shape.head_size * DTYPE.itemsize
        mass = kernels.mass_arguments(shape, DTYPE, random, self.layout)
        _, arena, _, row, heads, *_ = mass
        norm = torch.empty(1, shape.heads, shape.tokens, device=self.device)
        kept = int(kernels.KEPT * shape.tokens)
        copied = kernels.compact_arguments(shape, DTYPE, kept, random, self.layout)
        for name, op, arguments, num_bytes in (
            (
                f"attention_mass, {kernels.OBSERVED} queries",
                *(ops.attention_mass, mass, shape.tokens * token_bytes),
            ),
            (
                "value_norm",
                *(ops.value_norm, (arena, row, heads, norm), shape.tokens * token_bytes),
            ),
            (
                f"compact, {kernels.KEPT:.0%} of {kernels.LAYERS} layers",
                # K and V, read and written
                *(ops.compact, copied, 4 * kernels.LAYERS * kept * token_bytes),
            ),
        ):
            yield self.timing(name, shape, num_bytes, {"": same_call(op, arguments)})

    def store(self, shape: Shape) -> Timing:
        """A token of every request, whose heads are full: one of theirs is replaced."""
        random = self.random()
        lengths = torch.full((shape.requests, shape.heads), shape.tokens)
        made = kernels.make_decode(
            shape, DTYPE, lengths, StoreRule.BY_VALUE, random, layout=self.layout
        )
        kernels.fill_heads(shape, made)
        arguments = kernels.store_arguments(shape, made, random)
        num_bytes = int(lengths.sum()) * 8  # positions and values
        calls = {"": same_call(ops.store, arguments)}
        return self.timing("store, full heads", shape, num_bytes, calls)

    def _sampled(self, side: Call, graph: bool) -> Call:
        """Some calls at once, as a function of the sample's number."""

        def calls(sample: int) -> None:
            for number in range(CALLS_OF_A_SAMPLE):
                side(sample * CALLS_OF_A_SAMPLE + number)

        if self.device.type == "cpu":
            return calls
        calls(0)  # what is compiled or loaded at a first call cannot be captured
        torch.cuda.synchronize(self.device)
        run: Callable[[], object] = partial(calls, 0)
        if graph:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                calls(0)
            run = captured.replay

        def sample(_: int) -> None:
            run()
            torch.cuda.synchronize(self.device)

        return sample

    def _others(self, shape: Shape, there: list[kernels.Decode], query: Tensor) -> dict[str, Call]:
        """Attention of others over the same numbers."""
        others = {SDPA: _pytorch(shape, there, query)}
        if query.is_cuda and find_spec("triton") is not None:
            others[TRITON] = self._triton(shape, there, query)
        if find_spec("vllm") is not None and (query.is_cuda or self.layout is None):
            vllm = _flash_attention if query.is_cuda else _vllm_on_the_cpu
            others[VLLM] = vllm(shape, there, query)
        return others

    def _triton(self, shape: Shape, there: list[kernels.Decode], query: Tensor) -> Call:
        from fastgen_vllm.selfcheck.paged import PagedAttention

        output = torch.empty_like(query)

        def split(splits: int) -> Call:
            sides = [
                PagedAttention(each.arena[0], each.blocks, shape.tokens, shape.group, splits)
                for each in there
            ]
            return lambda number: sides[number % len(sides)](query, output)

        calls = [split(splits) for splits in SPLITS]
        seconds = self.medians(calls)
        return calls[seconds.index(min(seconds))]


def same_call(op: Callable[..., None], arguments: tuple[object, ...]) -> Call:
    """One whose buffers do not take turns."""
    return lambda _: op(*arguments)


def _pytorch(shape: Shape, there: list[kernels.Decode], query: Tensor) -> Call:
    """PyTorch's, with the query heads of a KV head as rows of one problem."""
    problems = shape.requests * shape.heads
    rows = query.view(problems, 1, shape.group, shape.head_size)
    sides = []
    for each in there:
        arena = each.arena
        if arena.shape[-1] != 2 * shape.head_size:  # the CPU's
            arena = to_cuda_layout(from_pairs(arena) if arena.dim() == 6 else arena)
        pages = arena[0][each.blocks.long()].transpose(1, 2)  # [R, H, M, S, 2*D]
        slots = pages.reshape(problems, 1, -1, 2 * shape.head_size)[:, :, : shape.tokens]
        key, value = slots.chunk(2, dim=-1)
        sides.append((key.contiguous(), value.contiguous()))

    def call(number: int) -> None:
        key, value = sides[number % len(sides)]
        scaled_dot_product_attention(rows, key, value)

    return call


def _vllm_on_the_cpu(shape: Shape, there: list[kernels.Decode], query: Tensor) -> Call:
    kernels.load_stock(None)
    lengths = torch.full((shape.requests, shape.heads), shape.tokens)
    return kernels.stock_attention(shape, there, query, lengths)


def _flash_attention(shape: Shape, there: list[kernels.Decode], query: Tensor) -> Call:
    from vllm.v1.attention.backends import fa_utils

    device = query.device
    output = torch.empty_like(query)
    start = torch.arange(shape.requests + 1, dtype=torch.int32, device=device)
    seq_lens = torch.full((shape.requests,), shape.tokens, dtype=torch.int32, device=device)
    version = fa_utils.get_flash_attn_version(head_size=shape.head_size)

    def call(number: int) -> None:
        each = there[number % len(there)]
        key, value = each.arena[0].transpose(1, 2).chunk(2, dim=-1)
        fa_utils.flash_attn_varlen_func(
            q=query,
            k=key,
            v=value,
            out=output,
            cu_seqlens_q=start,
            max_seqlen_q=1,
            seqused_k=seq_lens,
            max_seqlen_k=shape.tokens,
            softmax_scale=shape.head_size**-0.5,
            causal=True,
            block_table=each.blocks,
            fa_version=version,
        )

    return call
