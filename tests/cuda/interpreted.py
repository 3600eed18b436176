"""The CUDA ops in the interpreter of PTX: what nvcc made of the kernels, without the launchers."""

import ctypes
import functools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tests.cuda import toolkit
from tests.cuda.build import locate, pointers, region
from tests.cuda.emulated import EmulatedOps
from tests.cuda.ptx import Module, Space, launch, parse
from tests.cuda.structs import AttentionMassCall, DecodeCall, PagePool, ReplayCall

KERNELS = Path(__file__).parent / "ptx" / "kernels.cu"
ELEMENTS = ["float", "__half", "__nv_bfloat16"]
THREADS = 128


class Launch(NamedTuple):
    kernel: str
    grid: tuple[int, int]
    shared_bytes: int
    arguments: Sequence[bytes | int]


@functools.cache
def compiled(architecture: int, csrc: Path) -> Module:
    return parse(toolkit.find().ptx(KERNELS, architecture, csrc=csrc))


@dataclass
class InterpretedOps(EmulatedOps):
    """Launches as the launchers of csrc/cuda do, but for a few instances of the kernels only."""

    architecture: int = 80

    def run(self, op: str, arguments: ctypes.Structure, buffers: list[Tensor]) -> None:
        memory = Space()
        regions = sorted({region(buffer) for buffer in buffers})
        starts = {}
        for buffer in buffers:
            storage = torch.empty(0, dtype=torch.uint8).set_(buffer.untyped_storage())
            place = regions.index(region(buffer))
            if place not in starts:
                starts[place] = memory.add(storage.numpy())
        content = bytearray(bytes(arguments))
        for name, place in pointers(type(arguments)):
            (address,) = struct.unpack_from("Q", content, place)
            if address != 0:
                index, offset = locate(name, address, regions)
                struct.pack_into("Q", content, place, starts[index] + offset)
        for each in _launches(op, arguments, bytes(content)):
            launch(
                compiled(self.architecture, self.csrc),
                each.kernel,
                each.grid,
                (THREADS,),
                each.shared_bytes,
                each.arguments,
                memory=memory,
                order=self.seed,
            )


def _launches(op: str, call: ctypes.Structure, content: bytes) -> Iterator[Launch]:
    pool: PagePool = call.pool
    element, heads = ELEMENTS[pool.dtype], pool.num_layers * pool.num_heads
    if op == "store":
        grid = (pool.num_heads, call.step.num_requests)
        yield Launch("store_kernel<unsigned short>", grid, 0, [content])
    elif op == "compact":
        pages = min(_parts(call.num_kept, pool.page_slots), call.old_row.num_blocks)
        yield Launch("compact_kernel", (heads, pages), 0, [content])
    elif op == "value_norm":
        yield Launch(
            f"value_norm_kernel<{element}>", (_parts(call.num_tokens, 16), heads), 0, [content]
        )
    elif op == "attention_mass":
        split = AttentionMassCall.softmax_rows.offset
        (rows,) = struct.unpack_from("Q", content, split)
        keys = 64 * (64 + 8) * pool.element_size
        end = call.first_position + call.num_queries
        row_grid = (_parts(call.num_queries, 64), pool.num_heads * call.group_size)
        add_grid = (_parts(end, 64), pool.num_heads)
        add_shared = keys + 2 * 2 * 16 * 64 * 4
        yield Launch(f"mass_rows<{element}, 64>", row_grid, 2 * keys, [content[:split], rows])
        yield Launch(f"mass_add<{element}, 64>", add_grid, add_shared, [content[:split], rows])
    elif op == "replay":
        split = ReplayCall.scratch.offset
        rows, turned, sample = struct.unpack_from("QQQ", content, split)
        args = content[:split]
        keys = 64 * (64 + 8) * pool.element_size
        end = call.first_position + call.num_queries
        sampled = 4 + end // call.sample_step
        queries, group = _parts(call.num_queries, 64), call.group_size
        yield Launch(f"replay_turn<{element}>", (call.num_queries, 1), 0, [args, turned])
        yield Launch(
            f"replay_sample<{element}>", (_parts(sampled, 16), pool.num_heads), 0, [args, sample]
        )
        yield Launch(
            f"replay_rows<{element}, 64>",
            (queries, pool.num_heads * group),
            2 * keys,
            [args, turned, sample, rows],
        )
        yield Launch(
            f"replay_add<{element}, 64>",
            (queries, pool.num_heads),
            keys + 2 * 16 * 64 * 4,
            [args, turned, rows],
        )
    else:
        split = DecodeCall.first_page.offset
        passed = [content[:split], content[split:]]
        kinds = {64: "64, 4", 128: "128, 2"}[pool.head_size]
        pieces = f"decode_pieces<{element}, {kinds}>"
        yield Launch(pieces, (call.num_blocks, 1), 48 * 1024, passed)
        row_slots = call.step.row_blocks * pool.page_slots
        jobs = call.step.num_requests * pool.num_heads
        finish_grid = (jobs, min(_parts(row_slots, 2048), _parts(call.num_blocks, jobs)))
        yield Launch(f"decode_finish<{element}>", finish_grid, 8 * call.group_size, passed)


def _parts(count: int, size: int) -> int:
    return -(-count // size)
