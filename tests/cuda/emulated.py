"""The CUDA ops on the CPU: the sources of csrc/cuda, run by the emulator.

Same signatures as `fastgen_vllm.ops` and the same tensors, so that the tests of the CPU's kernels
test these too: the cache is brought into CUDA's layout for a call, and back.
"""

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fastgen_vllm.ops.layout import Layout, to_cpu_layout, to_cuda_layout
from tests.cuda import toolkit
from tests.cuda.build import Mode, Order, build, call
from tests.cuda.structs import CALLS, BlockRow, PagePool, ReplayScratch, StepRequests, Turn

ENTRIES = Path(__file__).parent / "entries"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
POOLINGS = ["mean", "max", "min"]


@dataclass
class EmulatedOps:
    """The ops, as methods.

    Attributes:
        directory: of what is built.
        csrc: folder of the kernels.
        num_blocks: thread blocks of ``decode_attention``.
        scored_pages: pages for whose scores ``decode_attention`` gets room.
        keeps_scratch: whether calls find in their scratch what the last one left, as the replays
            of a CUDA graph do; there is NaN otherwise.
        barriers: how often the threads of a block met in the last call, over all blocks.
    """

    directory: Path
    mode: Mode = Mode.PLAIN
    order: Order = Order.FORWARD
    layout: Layout = Layout.HEADS_FIRST
    seed: int = 0
    num_blocks: int = 5
    scored_pages: int = 1000
    keeps_scratch: bool = False
    barriers: int = 0
    csrc: Path = toolkit.CSRC
    _buffers: list[Tensor] = field(default_factory=list)
    _scratch: dict[str, Tensor] = field(default_factory=dict)

    def runner(self, op: str) -> Path:
        """Build an op, or find it built."""
        include = [self.csrc, self.csrc / "include", toolkit.find().include]
        return build(ENTRIES / f"{op}.cu", self.mode, include, self.directory / self.mode / op)

    def attention_mass(
        self,
        query: Tensor,
        arena: Tensor,
        layer: int,
        block_row: Tensor,
        heads: Tensor,
        first_position: int,
        scale: float,
        pool: str,
        mass: Tensor,
        energy: Tensor,
    ) -> None:
        softmax_rows = self._scratch_of("softmax_rows", query.shape[1], query.shape[0], 2)
        with self._cache(arena) as device:
            self._run(
                "attention_mass",
                **self._queries(
                    device, query, layer, block_row, heads, first_position, scale, pool
                ),
                mass=self._pointer(mass),
                mass_stride=mass.stride(0),
                energy=self._pointer(energy),
                energy_stride=energy.stride(0),
                softmax_rows=self._pointer(softmax_rows),
            )

    def replay(
        self,
        query: Tensor,
        arena: Tensor,
        layer: int,
        block_row: Tensor,
        heads: Tensor,
        first_position: int,
        scale: float,
        pool: str,
        turn: Tensor,
        interleaved: bool,
        sample: int,
        values: Tensor,
    ) -> None:
        sampled = 4 + (first_position + len(query)) // sample
        with self._cache(arena) as device:
            self._run(
                "replay",
                **self._queries(
                    device, query, layer, block_row, heads, first_position, scale, pool
                ),
                turn=self._turn(turn, interleaved),
                sample_step=sample,
                sample_bias=math.log(sample),
                values=self._pointer(values),
                scratch=self._replay_scratch(query, arena, sampled if sample > 1 else 1),
            )

    def replayed_mass(
        self,
        query: Tensor,
        arena: Tensor,
        layer: int,
        block_row: Tensor,
        heads: Tensor,
        first_position: int,
        scale: float,
        pool: str,
        turn: Tensor,
        interleaved: bool,
        mass: Tensor,
        energy: Tensor,
    ) -> None:
        with self._cache(arena) as device:
            self._run(
                "replayed_mass",
                **self._queries(
                    device, query, layer, block_row, heads, first_position, scale, pool
                ),
                is_replay=True,
                turn=self._turn(turn, interleaved),
                mass=self._pointer(mass),
                mass_stride=mass.stride(0),
                energy=self._pointer(energy),
                energy_stride=energy.stride(0),
                scratch=self._replay_scratch(query, arena, 1),
            )

    def _queries(
        self,
        device: Tensor,
        query: Tensor,
        layer: int,
        block_row: Tensor,
        heads: Tensor,
        first_position: int,
        scale: float,
        pool: str,
    ) -> dict[str, object]:
        return dict(
            pool=self._pool(device),
            query=self._pointer(query),
            query_token_stride=query.stride(0),
            query_head_stride=query.stride(1),
            num_queries=query.shape[0],
            group_size=query.shape[1] // device.shape[2],
            first_position=first_position,
            layer=layer,
            block_row=self._row(block_row),
            heads=self._pointer(heads),
            scale=scale,
            pooling=POOLINGS.index(pool),
        )

    def _turn(self, angles: Tensor, interleaved: bool) -> Turn:
        return Turn(self._pointer(angles), angles.shape[1], interleaved)

    def _replay_scratch(self, query: Tensor, arena: Tensor, sampled: int) -> ReplayScratch:
        W, heads, D = query.shape
        dtype = query.dtype
        return ReplayScratch(
            self._pointer(self._scratch_of("softmax_rows", heads, max(W, 1), 2)),
            self._pointer(self._scratch_of("turned", max(W, 1), heads, D, dtype=dtype)),
            self._pointer(self._scratch_of("sample", arena.shape[2], sampled, D, dtype=dtype)),
        )

    def value_norm(self, arena: Tensor, block_row: Tensor, heads: Tensor, norm: Tensor) -> None:
        with self._cache(arena) as device:
            self._run(
                "value_norm",
                pool=self._pool(device),
                block_row=self._row(block_row),
                heads=self._pointer(heads),
                num_tokens=norm.shape[2],
                norm=self._pointer(norm),
            )

    def compact(
        self,
        arena: Tensor,
        old_row: Tensor,
        old_heads: Tensor,
        saved: Tensor,
        new_row: Tensor,
        kept: Tensor,
        kept_position: Tensor,
        kept_start: Tensor,
        kept_value: Tensor,
        heads: Tensor,
        positions: Tensor,
        values: Tensor,
    ) -> None:
        with self._cache(arena) as device:
            self._run(
                "compact",
                pool=self._pool(device),
                saved=self._pool(to_cuda_layout(saved)),  # index_select keeps no layout
                old_row=self._row(old_row),
                old_heads=self._pointer(old_heads),
                new_row=self._row(new_row),
                num_kept=len(kept),
                kept=self._pointer(kept),
                kept_position=self._pointer(kept_position),
                kept_start=self._pointer(kept_start),
                kept_value=self._pointer(kept_value),
                heads=self._pointer(heads),
                positions=self._pointer(positions),
                values=self._pointer(values),
            )

    def store(
        self,
        key: Tensor,
        value: Tensor,
        token_index: Tensor,
        lanes: Tensor,
        block_rows: Tensor,
        token_position: Tensor,
        token_class: Tensor,
        layer: int,
        arena: Tensor,
        heads: Tensor,
        positions: Tensor,
        values: Tensor,
    ) -> None:
        with self._cache(arena) as device:
            self._run(
                "store",
                pool=self._pool(device),
                key=self._pointer(key),
                key_token_stride=key.stride(0),
                key_head_stride=key.stride(1),
                value=self._pointer(value),
                value_token_stride=value.stride(0),
                value_head_stride=value.stride(1),
                step=self._step(token_index, lanes, block_rows, layer, heads, len(key)),
                token_position=self._pointer(token_position),
                token_class=self._pointer(token_class),
                positions=self._pointer(positions),
                values=self._pointer(values),
            )

    def decode_attention(
        self,
        query: Tensor,
        token_index: Tensor,
        lanes: Tensor,
        block_rows: Tensor,
        layer: int,
        scale: float,
        pool: str,
        arena: Tensor,
        heads: Tensor,
        values: Tensor,
        output: Tensor,
    ) -> None:
        jobs = len(token_index) * arena.shape[2]
        group, slots, head_size = (
            query.shape[1] // arena.shape[2],
            arena.shape[3] // 2,
            query.shape[2],
        )
        first_page = self._scratch_of("first_page", jobs + 1, dtype=torch.int32)
        states = self._scratch_of("states", jobs + self.num_blocks, group * (head_size + 2))
        scores = self._scratch_of("scores", max(1, self.scored_pages), slots, group)
        with self._cache(arena) as device:
            self._run(
                "decode_attention",
                pool=self._pool(device),
                query=self._pointer(query),
                query_token_stride=query.stride(0),
                query_head_stride=query.stride(1),
                output=self._pointer(output),
                output_token_stride=output.stride(0),
                output_head_stride=output.stride(1),
                step=self._step(token_index, lanes, block_rows, layer, heads, len(query)),
                group_size=group,
                scale=scale,
                pooling=POOLINGS.index(pool),
                values=self._pointer(values),
                first_page=self._pointer(first_page),
                states=self._pointer(states),
                scores=self._pointer(scores),
                scored_pages=self.scored_pages,
                num_blocks=self.num_blocks,
            )

    @contextmanager
    def _cache(self, arena: Tensor) -> Iterator[Tensor]:
        """The cache as CUDA has it; what a call writes there is brought back."""
        device = to_cuda_layout(arena, self.layout)
        yield device
        arena.copy_(to_cpu_layout(device))

    def _pool(self, device: Tensor) -> PagePool:
        L, B, H, S, width = device.shape
        return PagePool(
            arena=self._pointer(device),
            dtype=DTYPES.index(device.dtype),
            element_size=device.element_size(),
            layer_stride=device.stride(0),
            block_stride=device.stride(1),
            head_stride=device.stride(2),
            slot_stride=device.stride(3),
            num_blocks=B,
            num_layers=L,
            num_heads=H,
            page_slots=S,
            head_size=width // 2,
        )

    def _row(self, row: Tensor) -> BlockRow:
        return BlockRow(self._pointer(row), len(row))

    def _step(
        self,
        token_index: Tensor,
        lanes: Tensor,
        block_rows: Tensor,
        layer: int,
        heads: Tensor,
        num_tokens: int,
    ) -> StepRequests:
        return StepRequests(
            token_index=self._pointer(token_index),
            lanes=self._pointer(lanes),
            block_rows=self._pointer(block_rows),
            row_stride=block_rows.stride(0),
            row_blocks=block_rows.shape[1],
            num_requests=len(token_index),
            num_tokens=num_tokens,
            num_lanes=len(heads),
            layer=layer,
            heads=self._pointer(heads),
        )

    def _scratch_of(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if not self.keeps_scratch or name not in self._scratch:
            fill = float("nan") if dtype.is_floating_point else -1
            self._scratch[name] = torch.full(shape, fill, dtype=dtype)
        assert self._scratch[name].shape == shape, "a graph's calls have the shape of its capture"
        return self._scratch[name]

    def _pointer(self, tensor: Tensor) -> int:
        """Address of a tensor whose storage the next call gets."""
        self._buffers.append(tensor)
        return tensor.data_ptr()

    def _run(self, op: str, **arguments: object) -> None:
        buffers, self._buffers = self._buffers, []
        self.run(op, CALLS[op](**arguments), buffers)

    def run(self, op: str, arguments: ctypes.Structure, buffers: list[Tensor]) -> None:
        """Make one call; pointers in the arguments point into the buffers."""
        runner = self.runner(op)
        self.barriers = call(runner, "run", arguments, buffers, self.order, self.seed)
