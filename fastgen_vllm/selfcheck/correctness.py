"""Every op against its reference: some requests' life on both, compared after every step.

Random prompts are profiled, compacted by a preset's policies and decoded together, so the cases are
those that an engine meets: ragged heads, growth pages, heads that append, replace by value or age.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen_vllm import ops
from fastgen_vllm.config import load_config
from fastgen_vllm.geometry import CacheGeometry, HeadField, TokenClass
from fastgen_vllm.lifecycle import plan_compaction
from fastgen_vllm.ops import reference
from fastgen_vllm.ops.layout import Layout, from_pairs, to_cpu_layout, to_cuda_layout, to_pairs
from fastgen_vllm.pages import stock_records
from fastgen_vllm.pages.size import cdiv
from fastgen_vllm.profile.prompt import PromptProfile
from fastgen_vllm.request import RequestOptions
from fastgen_vllm.selfcheck.report import OpCheck

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Error of a result, relative to its norm: a few roundings of the cache's dtype.
ALLOWED = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
PRESETS = ("full", "paper", "balanced")
PROMPTS = (150, 71)  # tokens of each request; no multiples of any page
OBSERVED = 40
GENERATED = 24  # more than a page of a GPU, so that heads grow


class Shape(NamedTuple):
    """Of a model and its pages."""

    num_layers: int
    num_kv_heads: int
    group_size: int
    head_size: int
    block_size: int


#: Pages of 16 slots are vLLM's on a GPU; those of the CPU's kernels have 32 and more.
SHAPES = {
    "cpu": (Shape(2, 3, 3, 64, 32), Shape(2, 2, 4, 128, 32), Shape(1, 4, 1, 96, 64)),
    "cuda": (Shape(2, 3, 3, 64, 16), Shape(2, 2, 4, 128, 16), Shape(1, 4, 1, 96, 32)),
}


class Order(NamedTuple):
    """How a cache [L, B, H, 2*S, D] lies in memory."""

    name: str  # none for the usual one of a device
    there: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


IN_COLUMNS = Order("", Tensor.contiguous, Tensor.clone)
IN_PAIRS = Order(" in pairs", to_pairs, from_pairs)
HEADS_FIRST = Order("", to_cuda_layout, to_cpu_layout)
SLOTS_FIRST = Order(
    " slots first", partial(to_cuda_layout, layout=Layout.SLOTS_FIRST), to_cpu_layout
)


def orders(device: torch.device, dtype: torch.dtype) -> Sequence[Order]:
    """All orders in which the device's ops take a cache."""
    if device.type == "cuda":
        return (HEADS_FIRST, SLOTS_FIRST)
    return (IN_COLUMNS, IN_PAIRS) if dtype == torch.bfloat16 else (IN_COLUMNS,)


@dataclass
class Side:
    """A cache with its metadata on one device, and what computes on it."""

    op: Callable[[str], Callable[..., None]]
    order: Order
    arena: Tensor
    positions: Tensor
    values: Tensor
    heads: Tensor

    def on_host(self) -> dict[str, Tensor]:
        """Copies of everything, the cache in columns as the reference has it."""
        names = ("positions", "values", "heads")
        copies = {name: getattr(self, name).cpu().clone() for name in names}
        return {"arena": self.order.back(self.arena.cpu()), **copies}


class Life:
    """Requests of :data:`PROMPTS` on a device and on the reference."""

    def __init__(
        self,
        device: torch.device,
        shape: Shape,
        dtype: torch.dtype,
        preset: str,
        order: Order = IN_COLUMNS,
    ) -> None:
        seed = sum(shape) + sum(map(ord, preset))
        self._random = torch.Generator().manual_seed(seed)
        self._device = device
        self._dtype = dtype
        self._shape = shape
        self._config = load_config(preset)
        self._make_rows()
        slots = (self._num_blocks, shape.num_layers * shape.num_kv_heads, shape.block_size)
        page = (2 * shape.block_size, shape.head_size)
        arena = self._normal(shape.num_layers, self._num_blocks, shape.num_kv_heads, *page)
        lanes = len(PROMPTS) + 1
        heads = (lanes, shape.num_layers, shape.num_kv_heads, len(HeadField))
        state = (
            torch.full(slots, -1, dtype=torch.int32),
            torch.zeros(slots),
            torch.zeros(heads, dtype=torch.int32),
        )
        self._lanes = torch.randperm(lanes, generator=self._random)[: len(PROMPTS)].int()
        there = order.there(arena)
        copies = (there.to(device, copy=True), *(t.to(device, copy=True) for t in state))
        self._actual = Side(lambda name: getattr(ops, name), order, *copies)
        self._expected = Side(lambda name: getattr(reference, name), IN_COLUMNS, arena, *state)

    def _make_rows(self) -> None:
        """Give every request blocks for its prompt and for its page stream.

        A prompt's last block is in both of its rows, as happens in a full pool.
        """
        slots = self._shape.block_size
        prompts = [cdiv(prompt, slots) for prompt in PROMPTS]
        most = 2 * cdiv(max(PROMPTS) + GENERATED, slots)
        self._num_blocks = sum(prompts) + len(PROMPTS) * most
        blocks = torch.randperm(self._num_blocks, generator=self._random).int()
        *self._old, fresh = torch.split(blocks, [*prompts, len(PROMPTS) * most])
        shared = torch.stack([row[-1] for row in self._old])
        self._new = torch.cat([shared[:, None], fresh.view(len(PROMPTS), most)], dim=1)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._random).to(self._dtype)

    def errors(self) -> Iterator[tuple[str, float]]:
        """Name and error of every op, as often as it ran."""
        for request in range(len(PROMPTS)):
            yield from self._compact(request)
        for generated in range(GENERATED):
            yield from self._decode(generated)

    def _compact(self, request: int) -> Iterator[tuple[str, float]]:
        """Profile a prompt and bring what is kept of it into its page stream."""
        shape, prompt, old = self._shape, PROMPTS[request], self._old[request]
        q_heads = shape.num_kv_heads * shape.group_size
        sums = (shape.num_layers, shape.num_kv_heads, prompt)
        stock = stock_records(shape.num_layers, shape.num_kv_heads)
        profile = {name: torch.zeros(sums) for name in ("mass", "energy")}
        for layer in range(shape.num_layers):
            given = dict(
                query=self._normal(OBSERVED, q_heads, shape.head_size),
                layer=layer,
                block_row=old,
                heads=stock,
                first_position=prompt - OBSERVED,
                scale=shape.head_size**-0.5,
                pool=self._config.pool,
            )
            layers = {name: total[layer] for name, total in profile.items()}
            yield self._run("attention_mass", given, layers)
        norm = {"norm": torch.zeros(sums)}
        yield self._run("value_norm", dict(block_row=old, heads=stock), norm)

        token_class = torch.zeros(prompt, dtype=torch.int32)
        token_class[0], token_class[::9] = TokenClass.SPECIAL, TokenClass.PUNCTUATION
        seen = PromptProfile(
            profile["mass"], profile["energy"], norm["norm"], token_class, OBSERVED
        )
        geometry = CacheGeometry(*shape, num_blocks=self._num_blocks)
        plan = plan_compaction(seen, self._config, RequestOptions(), geometry)
        copy = plan.prepare().copy(token_class)
        lane = int(self._lanes[request])
        for side in (self._expected, self._actual):
            side.heads[lane] = copy.records.to(side.heads.device)
        given = dict(
            old_row=torch.cat([old[:-1], torch.tensor([self._num_blocks]).int()]),
            old_heads=stock,
            new_row=self._new[request],
            kept=copy.kept,
            kept_position=copy.kept,
            kept_start=copy.kept_start,
            kept_value=copy.kept_value,
        )
        yield self._run("compact", given, {}, request)

    def _decode(self, generated: int) -> Iterator[tuple[str, float]]:
        """Store a token of every request, and attend to what it has."""
        shape, requests = self._shape, len(PROMPTS)
        where = dict(
            token_index=torch.randperm(requests, generator=self._random),
            lanes=self._lanes,
            block_rows=self._new,
        )
        positions = torch.tensor(PROMPTS, dtype=torch.int32) + generated
        for layer in range(shape.num_layers):
            token = (requests, shape.num_kv_heads, shape.head_size)
            new = dict(
                key=self._normal(*token),
                value=self._normal(*token),
                token_position=positions,
                token_class=positions % 3,
                layer=layer,
            )
            yield self._run("store", where | new, {})
            query = self._normal(requests, shape.num_kv_heads * shape.group_size, shape.head_size)
            scale = shape.head_size**-0.5
            asked = dict(query=query, layer=layer, scale=scale, pool=self._config.pool)
            output = {"output": torch.empty_like(query)}
            yield self._run("decode_attention", where | asked, output)

    def _run(
        self,
        name: str,
        given: Mapping[str, object],
        results: Mapping[str, Tensor],
        request: int = 0,
    ) -> tuple[str, float]:
        """Run an op on both sides; make the device's state the reference's again."""
        # The reference writes into `results` itself, the device into a copy.
        returned = {n: t.to(self._device, copy=True) for n, t in results.items()}
        for side, into in ((self._expected, results), (self._actual, returned)):
            there = side.arena.device
            moved = {n: v.to(there) if isinstance(v, Tensor) else v for n, v in given.items()}
            state = {n: self._state(side, name, n, request) for n in STATE[name]}
            side.op(name)(**moved, **state, **into)
        expected, actual = self._expected.on_host(), self._actual.on_host()
        pairs = [(expected[n], actual[n]) for n in expected]
        pairs += [(results[n], returned[n].cpu()) for n in results]
        worst = max(error(*pair) for pair in pairs)
        for n, tensor in expected.items():
            if n == "arena":
                tensor = self._actual.order.there(tensor)
            getattr(self._actual, n).copy_(tensor)
        return name, worst

    def _state(self, side: Side, op: str, name: str, request: int) -> Tensor:
        if name == "saved":
            return side.arena.index_select(1, self._old[request][-1:].to(side.arena.device))
        if name == "heads" and op == "compact":
            return side.heads[int(self._lanes[request])]
        tensor: Tensor = getattr(side, name)
        return tensor


#: Arguments of each op that outlive a call.
STATE = {
    "attention_mass": ("arena",),
    "value_norm": ("arena",),
    "compact": ("arena", "saved", "heads", "positions", "values"),
    "store": ("arena", "heads", "positions", "values"),
    "decode_attention": ("arena", "heads", "values"),
}


def error(expected: Tensor, actual: Tensor) -> float:
    """Norm of the difference over the norm of what is expected; infinite for other integers."""
    if torch.equal(expected, actual):
        return 0.0
    if not expected.is_floating_point():
        return math.inf
    marked = expected == math.inf  # protected slots
    if not torch.equal(marked, actual == math.inf):
        return math.inf
    a, b = actual.double().masked_fill(marked, 0), expected.double().masked_fill(marked, 0)
    return float((a - b).norm() / b.norm())


def check_ops(device: torch.device) -> Iterator[OpCheck]:
    """Check every op in every dtype, in all orders of the cache that the device has."""
    for dtype in DTYPES:
        for order in orders(device, dtype):
            yield from check(device, dtype, order, SHAPES[device.type], PRESETS)


def check(
    device: torch.device,
    dtype: torch.dtype,
    order: Order,
    shapes: Sequence[Shape],
    presets: Sequence[str],
) -> Iterator[OpCheck]:
    """Check every op in one dtype and one order of the cache."""
    found: dict[str, list[float]] = {name: [] for name in STATE}
    for shape in shapes:
        for preset in presets:
            for name, worst in Life(device, shape, dtype, preset, order).errors():
                found[name].append(worst)
    for name, errors in found.items():
        yield OpCheck(
            op=name,
            dtype=str(dtype).removeprefix("torch.") + order.name,
            cases=len(errors),
            # Copies are exact; everything else is a sum.
            worst_error=math.nan if any(map(math.isnan, errors)) else max(errors),
            allowed_error=0.0 if name in ("compact", "store") else ALLOWED[dtype],
        )
