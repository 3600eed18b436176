"""Random calls of the ops, good and bad."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgen_vllm.geometry import HeadField, StoreRule
from fastgen_vllm.pages import stock_records
from fastgen_vllm.pages.fold import stream_pages
from tests.ops.cases import HeadPlan, make_records

INT_MAX, INT_MIN = 2**31 - 1, -(2**31)
MOST_SLOTS = 2**30
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPS = ["store", "decode_attention", "compact", "attention_mass", "value_norm"]
Values = dict[str, Any]

#: Arguments whose numbers may be wrong.
CONTENTS = {
    "token_index",
    "lanes",
    "block_rows",
    "token_position",
    "heads",
    "old_row",
    "old_heads",
    "new_row",
    "kept",
    "kept_start",
    "block_row",
    "positions",
    "values",
}


@dataclass
class Case:
    """One call: an op and its arguments by name."""

    op: str
    arguments: Values
    wrong: list[str]  # what was put into it that may be wrong

    @property
    def arena(self) -> Tensor:
        """[L, B, H, 2*S, D]."""
        return self.arguments["arena"]

    def clone(self) -> "Case":
        """Return a copy with tensors of its own."""
        copied = {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in self.arguments.items()
        }
        return Case(self.op, copied, self.wrong)


def make(seed: int, slots: tuple[int, ...] = (32, 64)) -> Case:
    """Make the case of a seed: half of them have something wrong in them."""
    rng = random.Random(seed)
    op = rng.choices(OPS, [4, 4, 4, 1, 1])[0]
    maker = _Maker(rng, rng.choice(slots))
    case = Case(op, getattr(maker, op)(), [])
    for _ in range(rng.choice([0, 0, 1, 1, 1, 2])):
        spoil(case, rng)
    return case


class _Maker:
    """Legal arguments of the ops."""

    def __init__(self, rng: random.Random, slots: int) -> None:
        self.rng = rng
        self.torch = torch.Generator().manual_seed(rng.randrange(2**32))
        self.L, self.H, self.S = rng.randint(1, 2), rng.randint(1, 3), slots
        self.D, self.G = rng.choice([32, 64, 96]), rng.randint(1, 4)
        self.dtype = rng.choice(DTYPES)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.torch).to(self.dtype)

    def blocks(self, count: int, of: int) -> Tensor:
        return torch.randperm(of, generator=self.torch)[:count].int()

    def cache(self, num_blocks: int) -> Values:
        pages = (num_blocks, self.L * self.H, self.S)
        count = num_blocks * self.L * self.H * self.S
        positions = torch.randperm(count, generator=self.torch).view(pages)
        values = torch.rand(pages, generator=self.torch)
        values[values > 0.9] = float("inf")
        return {
            "arena": self.randn(self.L, num_blocks, self.H, 2 * self.S, self.D),
            "positions": positions.int(),
            "values": values,
        }

    def records(self, least: int, grows: bool = True) -> tuple[Tensor, int]:
        """Records [L, H, 16] of one request and the pages that they need."""
        plans = []
        stock = self.rng.choice([0, 0, 1, 2])
        read_only = self.rng.randint(0, stock)
        for _ in range(self.L * self.H):
            rule = self.rng.choice(list(StoreRule))
            length = self.rng.choice([least, 1, self.S - 1, self.S, self.S + 1, 2 * self.S, 83])
            own = length
            length += stock * self.S
            fixed = None
            if rule == StoreRule.APPEND and grows:
                fixed = self.rng.choice([None, 0, 1])
            elif rule != StoreRule.APPEND:
                fixed = -(-own // self.S) + self.rng.randint(0, 1)
            period = self.rng.choice([0, 0, 1, 3]) if rule != StoreRule.APPEND else 0
            window, seen = self.rng.randint(0, 40), self.rng.randint(0, 90)
            protects = self.rng.randint(0, 3)
            plans.append(HeadPlan(length, rule, fixed, protects, window, seen, period, room=10**6))
        return make_records(plans, self.L, self.H, self.S, stock, read_only)

    def step(self, least: int) -> Values:
        """What ``store`` and ``decode_attention`` have in common."""
        requests, lanes = self.rng.randint(1, 3), 4
        made = [self.records(least) for _ in range(requests)]
        row_blocks = max(-(-pages // (self.L * self.H)) for _, pages in made) + 1
        num_blocks = requests * row_blocks + self.rng.randint(0, 2)
        heads = torch.zeros(lanes, self.L, self.H, len(HeadField), dtype=torch.int32)
        chosen = self.blocks(requests, lanes)
        for lane, (records, _) in zip(chosen, made, strict=True):
            heads[lane] = records
        return {
            "token_index": torch.randperm(requests + 1, generator=self.torch)[:requests],
            "lanes": chosen,
            "block_rows": self.blocks(requests * row_blocks, num_blocks).view(requests, -1),
            "layer": self.rng.randrange(self.L),
            "heads": heads,
            **self.cache(num_blocks),
        }

    def store(self) -> Values:
        step = self.step(0)
        requests = len(step["lanes"])
        position = [self.rng.choice([0, 90, 5000]) for _ in range(requests)]
        return {
            **step,
            "key": self.randn(requests + 1, self.H, self.D),
            "value": self.randn(requests + 1, self.H, self.D),
            "token_position": torch.tensor(position, dtype=torch.int32),
            "token_class": torch.randint(0, 4, (requests,), generator=self.torch).int(),
        }

    def decode_attention(self) -> Values:
        step = self.step(1)
        del step["positions"]
        query = self.randn(len(step["lanes"]) + 1, self.H * self.G, self.D)
        return {
            **step,
            "query": query,
            "scale": self.D**-0.5,
            "pool": self.rng.choice(["mean", "max", "min"]),
            "output": torch.zeros_like(query),
        }

    def compact(self) -> Values:
        records, pages = self.records(0)
        old, old_heads = self.rng.randint(1, 4), stock_records(self.L, self.H)
        most = [old * self.S] * (self.L * self.H)  # slots of the old heads
        if self.rng.random() < 0.5:  # it has been compacted before
            old_heads, old_pages = self.records(1)
            old = -(-old_pages // (self.L * self.H))
            most = old_heads[..., HeadField.LENGTH].flatten().tolist()
        new = -(-pages // (self.L * self.H)) + self.rng.randint(0, 1)
        num_blocks = old + new + self.rng.randint(0, 2)
        cache = self.cache(num_blocks)
        blocks = self.blocks(old + new, num_blocks)
        old_row, new_row = blocks[:old].clone(), blocks[old:].clone()
        if self.rng.random() < 0.3:  # into any blocks
            new_row = self.blocks(new, num_blocks)
        both = torch.isin(old_row, new_row)
        saved = cache["arena"][:, old_row[both].long()]
        old_row[both] = torch.arange(num_blocks, num_blocks + saved.shape[1]).int()
        fields = records.view(-1, len(HeadField))
        lengths = (fields[:, HeadField.LENGTH] - fields[:, HeadField.STOCK_PAGES] * self.S).long()
        kept = torch.cat(
            [
                torch.randint(0, slots, (length,), generator=self.torch)
                for slots, length in zip(most, lengths.tolist(), strict=True)
            ]
        )
        return {
            **cache,
            "saved": saved,
            "old_row": old_row,
            "old_heads": old_heads,
            "new_row": new_row,
            "kept": kept.int(),
            "kept_position": kept.flip(0).int(),
            "kept_start": torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]),
            "kept_value": torch.rand(len(kept), generator=self.torch),
            "heads": records,
        }

    def request(self) -> tuple[int, Values]:
        """Slots that every head of a request has, stock or compacted, and where they lie."""
        tokens = self.rng.choice([1, self.S - 1, self.S, 2 * self.S + 5])
        records, per_block = stock_records(self.L, self.H), self.L * self.H
        if self.rng.random() < 0.6:
            records, _ = self.records(0)
        used = stream_pages(records, torch.arange(-(-tokens // self.S)), per_block)
        count = int(used.max()) // per_block + 1
        num_blocks = count + self.rng.randint(0, 2)
        row = self.blocks(count, num_blocks)
        return tokens, {
            "arena": self.cache(num_blocks)["arena"],
            "block_row": row,
            "heads": records,
        }

    def attention_mass(self) -> Values:
        tokens, request = self.request()
        queries = self.rng.randint(0, min(tokens, 9))
        mass, energy = torch.zeros(2, self.H, tokens + self.rng.randint(0, 3))
        return {
            **request,
            "query": self.randn(queries, self.H * self.G, self.D),
            "layer": self.rng.randrange(self.L),
            "first_position": tokens - queries,
            "scale": self.D**-0.5,
            "pool": self.rng.choice(["mean", "max", "min"]),
            "mass": mass,
            "energy": energy,
        }

    def value_norm(self) -> Values:
        tokens, request = self.request()
        return {**request, "norm": torch.zeros(self.L, self.H, tokens)}


def spoil(case: Case, rng: random.Random) -> None:
    """Put a number into the case that nobody expects there, or cut a row of blocks short."""
    names = sorted(CONTENTS & case.arguments.keys())
    name = rng.choices(
        names, [6 if "heads" in name else 2 if "row" in name else 1 for name in names]
    )[0]
    tensor: Tensor = case.arguments[name]
    if name in ("block_rows", "new_row", "old_row", "block_row") and rng.random() < 0.4:
        left = rng.randrange(tensor.shape[-1] + 1)
        case.arguments[name] = tensor[..., :left].contiguous()
        case.wrong.append(f"{name} has {left} blocks")
        return
    if tensor.numel() == 0:
        return
    place = rng.randrange(tensor.numel())
    numbers: list[float] = [-1, 0, 1, 2, 7, 33, 1000, MOST_SLOTS - 1, MOST_SLOTS, INT_MAX, INT_MIN]
    numbers += [int(tensor.flatten()[place]) + 1, case.arena.shape[1]] if name != "values" else []
    if name == "values":
        numbers += [float("nan"), float("inf"), float("-inf")]
    elif tensor.dtype == torch.int64:
        numbers += [2**62, -(2**62)]
    number = rng.choice(numbers)
    if name in ("heads", "old_heads"):
        field = rng.choice(list(HeadField))
        place = place // len(HeadField) * len(HeadField) + field
        name = f"{name}, {field.name}"
    case.wrong.append(f"{name}[{place}] = {number}")
    tensor.view(-1)[place] = min(number, INT_MAX) if tensor.dtype == torch.int32 else number
