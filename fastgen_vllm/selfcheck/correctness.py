"""Every op against its reference: a request's life on both, compared after every step.

A random prompt is profiled, compacted by a preset's policies and decoded, so the cases are those
that an engine meets: ragged heads, growth pages, heads that append, replace by value or by age.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen_vllm import ops
from fastgen_vllm.config import load_config
from fastgen_vllm.geometry import CacheGeometry, HeadField, TokenClass
from fastgen_vllm.lifecycle import plan_compaction
from fastgen_vllm.ops import reference
from fastgen_vllm.ops.layout import from_pairs, to_cpu_layout, to_cuda_layout, to_pairs
from fastgen_vllm.pages.size import cdiv
from fastgen_vllm.profile.prompt import PromptProfile
from fastgen_vllm.request import RequestOptions
from fastgen_vllm.selfcheck.report import OpCheck

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Error of a result, relative to its norm: a few roundings of the cache's dtype.
ALLOWED = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
PRESETS = ("full", "paper", "balanced")
PROMPT = 150  # tokens; not a multiple of any page
OBSERVED = 40
GENERATED = 40  # more than a page, so that heads grow


class Shape(NamedTuple):
    """Of a model and its pages."""

    num_layers: int
    num_kv_heads: int
    group_size: int
    head_size: int
    block_size: int


SHAPES = (Shape(2, 3, 3, 64, 32), Shape(2, 2, 4, 128, 32), Shape(1, 4, 1, 96, 64))


@dataclass
class Side:
    """A cache with its metadata on one device, and what computes on it."""

    op: Callable[[str], Callable[..., None]]
    arena: Tensor
    positions: Tensor
    values: Tensor
    heads: Tensor

    def on_host(self) -> dict[str, Tensor]:
        """Copies of everything, the cache in columns as the reference has it."""
        arena = self.arena.cpu()
        if self.arena.is_cuda:
            arena = to_cpu_layout(arena)
        elif arena.dim() == 6:
            arena = from_pairs(arena)
        else:
            arena = arena.clone()
        copies = (self.positions, self.values, self.heads)
        names = ("positions", "values", "heads")
        return {"arena": arena, **{n: t.cpu().clone() for n, t in zip(names, copies, strict=True)}}


class Life:
    """One request on a device and on the reference."""

    def __init__(
        self,
        device: torch.device,
        shape: Shape,
        dtype: torch.dtype,
        preset: str,
        in_pairs: bool = False,
    ) -> None:
        seed = sum(shape) + sum(map(ord, preset))
        self._random = torch.Generator().manual_seed(seed)
        self._device = device
        self._dtype = dtype
        self._shape = shape
        self._config = load_config(preset)
        prompt_blocks = cdiv(PROMPT, shape.block_size)
        most = cdiv(PROMPT + GENERATED, shape.block_size)
        self._rows = torch.randperm(prompt_blocks + 2 * most, generator=self._random).int()
        # The prompt's last block is in both rows, as happens in a full pool.
        self._old, self._new = self._rows[:prompt_blocks], self._rows[prompt_blocks - 1 :]
        slots = (len(self._rows), shape.num_layers * shape.num_kv_heads, shape.block_size)
        page = (2 * shape.block_size, shape.head_size)
        arena = self._normal(shape.num_layers, len(self._rows), shape.num_kv_heads, *page)
        heads = (1, shape.num_layers, shape.num_kv_heads, len(HeadField))
        state = (
            torch.full(slots, -1, dtype=torch.int32),
            torch.zeros(slots),
            torch.zeros(heads, dtype=torch.int32),
        )
        self._expected = Side(lambda name: getattr(reference, name), arena, *state)
        self._order: Callable[[Tensor], Tensor] = Tensor.contiguous
        if in_pairs:
            self._order = to_pairs
        elif device.type == "cuda":
            self._order = to_cuda_layout
        there = self._order(arena)
        copies = (there.to(device, copy=True), *(t.to(device, copy=True) for t in state))
        self._actual = Side(lambda name: getattr(ops, name), *copies)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._random).to(self._dtype)

    def errors(self) -> Iterator[tuple[str, float]]:
        """Name and error of every op, as often as it ran."""
        shape = self._shape
        scale = shape.head_size**-0.5
        num_q_heads = shape.num_kv_heads * shape.group_size
        sums = (shape.num_layers, shape.num_kv_heads, PROMPT)
        profile = {name: torch.zeros(sums) for name in ("mass", "energy")}
        first = PROMPT - OBSERVED
        for layer in range(shape.num_layers):
            query = self._normal(OBSERVED, num_q_heads, shape.head_size)
            layers = {name: total[layer] for name, total in profile.items()}
            yield self._run(
                "attention_mass",
                dict(
                    query=query,
                    layer=layer,
                    block_row=self._old,
                    first_position=first,
                    scale=scale,
                    pool=self._config.pool,
                ),
                layers,
            )
        norm = {"norm": torch.zeros(sums)}
        yield self._run("value_norm", dict(block_row=self._old), norm)

        token_class = torch.zeros(PROMPT, dtype=torch.int32)
        token_class[0], token_class[::9] = TokenClass.SPECIAL, TokenClass.PUNCTUATION
        seen = PromptProfile(
            profile["mass"], profile["energy"], norm["norm"], token_class, OBSERVED
        )
        geometry = CacheGeometry(*shape, num_blocks=len(self._rows))
        plan = plan_compaction(seen, self._config, RequestOptions(), geometry)
        copy = plan.prepare().copy(token_class)
        self._expected.heads[0] = copy.records
        self._actual.heads[0] = copy.records.to(self._device)
        yield self._run(
            "compact",
            dict(
                old_row=torch.cat([self._old[:-1], torch.tensor([len(self._rows)]).int()]),
                new_row=self._new,
                kept=copy.kept,
                kept_start=copy.kept_start,
                kept_value=copy.kept_value,
            ),
            {},
        )
        where = dict(
            token_index=torch.zeros(1, dtype=torch.int64),
            lanes=torch.zeros(1, dtype=torch.int32),
            block_rows=self._new[None],
        )
        for position in range(PROMPT, PROMPT + GENERATED):
            for layer in range(shape.num_layers):
                token = (1, shape.num_kv_heads, shape.head_size)
                new = dict(
                    key=self._normal(*token),
                    value=self._normal(*token),
                    token_position=torch.tensor([position], dtype=torch.int32),
                    token_class=torch.tensor([position % 3], dtype=torch.int32),
                    layer=layer,
                )
                yield self._run("store", where | new, {})
                query = self._normal(1, num_q_heads, shape.head_size)
                asked = dict(query=query, layer=layer, scale=scale, pool=self._config.pool)
                yield self._run(
                    "decode_attention", where | asked, {"output": torch.empty_like(query)}
                )

    def _run(
        self, name: str, given: Mapping[str, object], results: Mapping[str, Tensor]
    ) -> tuple[str, float]:
        """Run an op on both sides; make the device's state the reference's again."""
        # The reference writes into `results` itself, the device into a copy.
        returned = {n: t.to(self._device, copy=True) for n, t in results.items()}
        for side, into in ((self._expected, results), (self._actual, returned)):
            there = side.arena.device
            moved = {n: v.to(there) if isinstance(v, Tensor) else v for n, v in given.items()}
            state = {n: self._state(side, name, n) for n in STATE[name]}
            side.op(name)(**moved, **state, **into)
        expected, actual = self._expected.on_host(), self._actual.on_host()
        pairs = [(expected[n], actual[n]) for n in expected]
        pairs += [(results[n], returned[n].cpu()) for n in results]
        worst = max(error(*pair) for pair in pairs)
        for n, tensor in expected.items():
            if n == "arena":
                tensor = self._order(tensor)
            getattr(self._actual, n).copy_(tensor)
        return name, worst

    def _state(self, side: Side, op: str, name: str) -> Tensor:
        if name == "saved":
            return side.arena.index_select(1, self._old[-1:].to(side.arena.device))
        if name == "heads" and op == "compact":
            return side.heads[0]
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
    """Check every op in every dtype, and on the CPU on pages in pairs."""
    orders = [(dtype, False) for dtype in DTYPES]
    if device.type == "cpu":
        orders.append((torch.bfloat16, True))
    for dtype, in_pairs in orders:
        found: dict[str, list[float]] = {name: [] for name in STATE}
        for shape in SHAPES:
            for preset in PRESETS:
                for name, worst in Life(device, shape, dtype, preset, in_pairs).errors():
                    found[name].append(worst)
        for name, errors in found.items():
            yield OpCheck(
                op=name,
                dtype=str(dtype).removeprefix("torch.") + (" in pairs" if in_pairs else ""),
                cases=len(errors),
                # Copies are exact; everything else is a sum.
                worst_error=math.nan if any(map(math.isnan, errors)) else max(errors),
                allowed_error=0.0 if name in ("compact", "store") else ALLOWED[dtype],
            )
