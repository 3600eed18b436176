"""Times of the kernels beside others' attention and beside what the device reads.

Calls are measured in runs between two waits for the device, on a GPU as replays of a CUDA graph, so
that starting a kernel costs what it costs in a model. Bytes are the least possible: K once for all
queries of ``attention_mass``. Others are vLLM's attention and a kernel in Triton, where those are
installed, and PyTorch's, over K and V that lie in order as in no cache.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastgen_vllm import ops
from fastgen_vllm.benchmark import kernels
from fastgen_vllm.geometry import HeadField, StoreRule
from fastgen_vllm.ops.layout import from_pairs, to_cuda_layout
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
DTYPE = torch.bfloat16
VLLM, SDPA, TRITON = "vLLM's attention", "PyTorch's attention", "a kernel in Triton"
#: Programs that share a head's tokens in Triton's kernel; the best is taken.
SPLITS = (1, 2, 4, 8, 16, 32, 64)

#: A call, by its number: buffers take turns.
Call = Callable[[int], object]


def time_kernels(device: torch.device) -> Iterator[Timing]:
    """Time the kernels on every shape."""
    read = _read_rate(device)
    for text in SHAPES[device.type]:
        shape = kernels.Shape.parse(text, PAGE_SLOTS[device.type])
        yield from _time_decode(device, shape, read)
        yield from _time_others(device, shape, read)


def _read_rate(device: torch.device) -> float:
    """Bytes per second of a sum over a gigabyte."""
    if device.type == "cpu":
        return kernels.read_bandwidth(CALLS)
    numbers = torch.ones(READ_BYTES // 4, device=device)
    (seconds,) = _medians(device, [lambda _: numbers.sum()])
    return READ_BYTES / seconds


def _medians(device: torch.device, sides: list[Call]) -> list[float]:
    """Seconds of a call of each side; sides take turns."""
    seconds = kernels.medians([_sampled(device, side) for side in sides], CALLS)
    return [each / CALLS_OF_A_SAMPLE for each in seconds]


def _sampled(device: torch.device, side: Call) -> Call:
    """Some calls at once, as a function of the sample's number."""

    def calls(sample: int) -> None:
        for number in range(CALLS_OF_A_SAMPLE):
            side(sample * CALLS_OF_A_SAMPLE + number)

    if device.type == "cpu":
        return calls
    calls(0)  # what is compiled or loaded at a first call cannot be captured
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls(0)

    def replay(_: int) -> None:
        graph.replay()
        torch.cuda.synchronize(device)

    return replay


def _time_decode(device: torch.device, shape: kernels.Shape, read: float) -> Iterator[Timing]:
    random = torch.Generator().manual_seed(0)
    uniform = torch.full((shape.requests, shape.heads), shape.tokens)
    num_bytes = int(uniform.sum()) * 2 * DTYPE.itemsize * shape.head_size
    for name, lengths, rule in (
        ("decode_attention", uniform, StoreRule.APPEND),
        ("decode_attention, values kept", uniform, StoreRule.BY_ENERGY),
        ("decode_attention, ragged", kernels.skewed(uniform, random), StoreRule.APPEND),
    ):
        copies = max(2, int(kernels.ROTATED_BYTES / num_bytes) + 1)  # more than an L2 cache
        made = [kernels.make_decode(shape, DTYPE, lengths, rule, random) for _ in range(copies)]
        there = [_moved_decode(each, device) for each in made]
        query = _query(shape, random).to(device)
        others: Mapping[str, Call] = {}
        if lengths is uniform:
            others = _others(shape, there, query)
        ours = kernels.our_attention(shape, there, query)
        seconds = _medians(device, [ours, *others.values()])
        rate = num_bytes / seconds[0]
        yield Timing(
            kernel=name,
            shape=str(shape),
            microseconds=seconds[0] * 1e6,
            gigabytes=rate / 1e9,
            of_read=rate / read,
            others={n: each * 1e6 for n, each in zip(others, seconds[1:], strict=True)},
        )


def _query(shape: kernels.Shape, random: torch.Generator) -> Tensor:
    """[R, H*G, D]."""
    size = (shape.requests, shape.heads * shape.group, shape.head_size)
    return torch.randn(size, generator=random).to(DTYPE)


def _time_others(device: torch.device, shape: kernels.Shape, read: float) -> Iterator[Timing]:
    """Profiling and compacting one prompt, storing a token of every request."""
    random = torch.Generator().manual_seed(0)
    token_bytes = shape.heads * shape.head_size * DTYPE.itemsize
    mass = kernels.mass_arguments(shape, DTYPE, random)
    _, arena, _, row, *_ = mass
    norm = torch.empty(1, shape.heads, shape.tokens)
    kept = int(kernels.KEPT * shape.tokens)
    copied = kernels.compact_arguments(shape, DTYPE, kept, random)
    lengths = torch.full((shape.requests, shape.heads), shape.tokens)
    made = kernels.make_decode(shape, DTYPE, lengths, StoreRule.BY_VALUE, random)
    # Full heads, of which a token is replaced: the last page that they are granted is their last.
    made.heads[..., HeadField.ROOM] = shape.page_slots + 1
    new = torch.randn(2, shape.requests, shape.heads, shape.head_size, generator=random).to(DTYPE)
    requests = torch.arange(shape.requests)
    stored = (
        *new,
        requests,
        requests.int(),
        made.blocks,
        torch.full_like(requests, shape.tokens, dtype=torch.int32),
        torch.zeros_like(requests, dtype=torch.int32),
        0,
        made.arena,
        made.heads,
        torch.zeros(made.values.shape, dtype=torch.int32),
        made.values,
    )
    cases: tuple[tuple[str, Callable[..., None], tuple[object, ...], int], ...] = (
        (
            f"attention_mass, {kernels.OBSERVED} queries",
            ops.attention_mass,
            mass,
            shape.tokens * token_bytes,
        ),
        ("value_norm", ops.value_norm, (arena, row, norm), shape.tokens * token_bytes),
        (
            f"compact, {kernels.KEPT:.0%} of {kernels.LAYERS} layers",
            ops.compact,
            copied,
            4 * kernels.LAYERS * kept * token_bytes,  # K and V, read and written
        ),
        ("store, full heads", ops.store, stored, int(lengths.sum()) * 8),
    )
    for name, op, arguments, num_bytes in cases:
        there = [_moved(a, device) if isinstance(a, Tensor) else a for a in arguments]
        (seconds,) = _medians(device, [partial(_call, op, there)])
        rate = num_bytes / seconds
        yield Timing(
            kernel=name,
            shape=str(shape),
            microseconds=seconds * 1e6,
            gigabytes=rate / 1e9,
            of_read=rate / read,
        )


def _call(op: Callable[..., None], arguments: list[object], _: int) -> None:
    op(*arguments)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device, a cache in its layout."""
    if tensor.dim() >= 5 and device.type == "cuda":
        tensor = to_cuda_layout(_in_columns(tensor))
    return tensor.to(device)


def _moved_decode(made: kernels.Decode, device: torch.device) -> kernels.Decode:
    tensors = (made.arena, made.blocks, made.heads, made.values)
    return kernels.Decode(*(_moved(tensor, device) for tensor in tensors))


def _in_columns(arena: Tensor) -> Tensor:
    """A cache [L, B, H, 2*S, D], also where this processor has it in pairs."""
    return from_pairs(arena) if arena.dim() == 6 else arena


def _others(shape: kernels.Shape, there: list[kernels.Decode], query: Tensor) -> dict[str, Call]:
    """Attention of others over the same numbers, which are on the device."""
    others = {SDPA: _pytorch(shape, there, query)}
    if query.is_cuda and find_spec("triton") is not None:
        others[TRITON] = _triton(shape, there, query)
    if find_spec("vllm") is not None:
        vllm = _flash_attention if query.is_cuda else _vllm_on_the_cpu
        others[VLLM] = vllm(shape, there, query)
    return others


def _pytorch(shape: kernels.Shape, there: list[kernels.Decode], query: Tensor) -> Call:
    """PyTorch's, with the query heads of a KV head as rows of one problem."""
    problems = shape.requests * shape.heads
    rows = query.view(problems, 1, shape.group, shape.head_size)
    sides = []
    for each in there:
        arena = each.arena if query.is_cuda else to_cuda_layout(_in_columns(each.arena))
        pages = arena[0][each.blocks.long()].transpose(1, 2)  # [R, H, M, S, 2*D]
        slots = pages.reshape(problems, 1, -1, 2 * shape.head_size)[:, :, : shape.tokens]
        key, value = slots.chunk(2, dim=-1)
        sides.append((key.contiguous(), value.contiguous()))

    def call(number: int) -> None:
        key, value = sides[number % len(sides)]
        scaled_dot_product_attention(rows, key, value)

    return call


def _triton(shape: kernels.Shape, there: list[kernels.Decode], query: Tensor) -> Call:
    from fastgen_vllm.selfcheck.paged import PagedAttention

    output = torch.empty_like(query)

    def split(splits: int) -> Call:
        sides = [
            PagedAttention(each.arena[0], each.blocks, shape.tokens, shape.group, splits)
            for each in there
        ]
        return lambda number: sides[number % len(sides)](query, output)

    calls = [split(splits) for splits in SPLITS]
    seconds = _medians(query.device, calls)
    return calls[seconds.index(min(seconds))]


def _vllm_on_the_cpu(shape: kernels.Shape, there: list[kernels.Decode], query: Tensor) -> Call:
    kernels.load_stock(None)
    lengths = torch.full((shape.requests, shape.heads), shape.tokens)
    return kernels.stock_attention(shape, there, query, lengths)


def _flash_attention(shape: kernels.Shape, there: list[kernels.Decode], query: Tensor) -> Call:
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
