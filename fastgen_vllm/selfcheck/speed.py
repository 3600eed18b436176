"""Times of the kernels beside vLLM's attention and beside what the device reads.

``decode_attention`` on the CPU is measured as by ``benchmark.py kernels``. Everything else is
measured in runs of calls between two waits for the device, so that starting a kernel costs what it
costs in a model. Bytes are the least possible: K once for all queries of ``attention_mass``.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from fastgen_vllm import ops
from fastgen_vllm.benchmark import kernels
from fastgen_vllm.geometry import HeadField, StoreRule
from fastgen_vllm.ops.layout import to_cuda_layout
from fastgen_vllm.selfcheck.report import Timing

CPU_SHAPES = ("8x1024x3x3x64",)
CUDA_SHAPES = ("64x2048x8x4x128", "16x8192x8x4x128", "64x1024x3x3x64")
CALLS = 11  # samples
CALLS_OF_A_SAMPLE = 20
READ_BYTES = 2**30
DTYPE = torch.bfloat16


def time_kernels(device: torch.device) -> Iterator[Timing]:
    """Time the kernels on every shape."""
    if device.type == "cpu":
        kernels.load_stock(None)
        read = kernels.read_bandwidth(CALLS)
        for text in CPU_SHAPES:
            for r in kernels.measure_decode(kernels.Shape.parse(text), DTYPE, CALLS, read):
                yield Timing(
                    kernel=r.kernel,
                    shape=r.shape,
                    microseconds=r.microseconds,
                    gigabytes=r.gigabytes,
                    of_read=r.of_read,
                    stock_microseconds=r.stock_microseconds,
                )
            yield from _time_others(device, kernels.Shape.parse(text), read)
        return
    read = _read_rate(device)
    for text in CUDA_SHAPES:
        yield from _time_decode(device, kernels.Shape.parse(text), read)
        yield from _time_others(device, kernels.Shape.parse(text), read)


def _read_rate(device: torch.device) -> float:
    """Bytes per second of a sum over a gigabyte."""
    numbers = torch.ones(READ_BYTES // 4, device=device)
    (seconds,) = _medians(device, [lambda _: numbers.sum()])
    return READ_BYTES / seconds


def _medians(device: torch.device, sides: list[Callable[[int], object]]) -> list[float]:
    """Seconds of a call of each side; sides take turns."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def sampled(side: Callable[[int], object]) -> Callable[[int], None]:
        def sample(number: int) -> None:
            for call in range(CALLS_OF_A_SAMPLE):
                side(number * CALLS_OF_A_SAMPLE + call)
            wait()

        return sample

    seconds = kernels.medians([sampled(side) for side in sides], CALLS)
    return [each / CALLS_OF_A_SAMPLE for each in seconds]


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
        ours, stock = _sides(device, shape, made, lengths)
        seconds = _medians(device, [ours, stock] if lengths is uniform else [ours])
        rate = num_bytes / seconds[0]
        yield Timing(
            kernel=name,
            shape=str(shape),
            microseconds=seconds[0] * 1e6,
            gigabytes=rate / 1e9,
            of_read=rate / read,
            stock_microseconds=seconds[1] * 1e6 if len(seconds) > 1 else None,
        )


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
    made.heads[..., HeadField.ROOM] = kernels.SLOTS + 1
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
        there = [_moved(argument, device) for argument in arguments]
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


def _moved(argument: object, device: torch.device) -> object:
    """An argument of an op on the device, caches in its layout."""
    if not isinstance(argument, Tensor):
        return argument
    if argument.dim() >= 5 and device.type == "cuda":
        argument = to_cuda_layout(argument.flatten(4))
    return argument.to(device)


def _sides(
    device: torch.device, shape: kernels.Shape, made: list[kernels.Decode], lengths: Tensor
) -> tuple[Callable[[int], None], Callable[[int], None]]:
    """Ours and FlashAttention, as functions of the call's number."""
    from vllm.v1.attention.backends import fa_utils

    caches = [to_cuda_layout(each.arena.flatten(4)).to(device) for each in made]
    blocks = [each.blocks.to(device) for each in made]
    heads = [each.heads.to(device) for each in made]
    values = [each.values.to(device) for each in made]
    q_heads = shape.heads * shape.group
    query = torch.randn(shape.requests, q_heads, shape.head_size, device=device, dtype=DTYPE)
    output = torch.empty_like(query)
    index = torch.arange(shape.requests, device=device)
    start = torch.arange(shape.requests + 1, dtype=torch.int32, device=device)
    lanes, seq_lens = index.int(), lengths[:, 0].int().to(device)
    scale = shape.head_size**-0.5
    version = fa_utils.get_flash_attn_version(head_size=shape.head_size)

    def ours(number: int) -> None:
        n = number % len(made)
        ops.decode_attention(
            query,
            index,
            lanes,
            blocks[n],
            0,
            scale,
            "mean",
            caches[n],
            heads[n],
            values[n],
            output,
        )

    def stock(number: int) -> None:
        n = number % len(made)
        key, value = caches[n][0].transpose(1, 2).chunk(2, dim=-1)
        fa_utils.flash_attn_varlen_func(
            q=query,
            k=key,
            v=value,
            out=output,
            cu_seqlens_q=start,
            max_seqlen_q=1,
            seqused_k=seq_lens,
            max_seqlen_k=shape.tokens,
            softmax_scale=scale,
            causal=True,
            block_table=blocks[n],
            fa_version=version,
        )

    return ours, stock
