"""Random calls of the ops, good and bad: each must end in the right result or in a clear error.

`python -m tests.ops.fuzz --cases 1000 --seed 7` makes calls of the CPU's ops; test_fuzz.py has them
made by a build with sanitizers, in which a wild read ends the process. Before every call its number
is written, and `--only NUMBER` repeats it.

What is expected is worked out head by head, from what a head record means and page by page.
"""

import argparse
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastgen_vllm import ops
from fastgen_vllm.geometry import HeadField, StoreRule
from fastgen_vllm.ops import reference
from fastgen_vllm.ops.layout import from_pairs, to_pairs
from tests.ops.cases import HeadPlan, make_records

INT_MAX, INT_MIN = 2**31 - 1, -(2**31)
MOST_SLOTS = 2**30
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPS = ["store", "decode_attention", "compact", "attention_mass", "value_norm"]
Values = dict[str, Any]


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


# -- making a case -------------------------------------------------------------------------------


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
        """Records [L, H, 13] of one request and the pages that they need."""
        plans = []
        for _ in range(self.L * self.H):
            rule = self.rng.choice(list(StoreRule))
            length = self.rng.choice([least, 1, self.S - 1, self.S, self.S + 1, 2 * self.S, 83])
            fixed = None
            if rule == StoreRule.APPEND and grows:
                fixed = self.rng.choice([None, 0, 1])
            elif rule != StoreRule.APPEND:
                fixed = -(-length // self.S) + self.rng.randint(0, 1)
            period = self.rng.choice([0, 0, 1, 3]) if rule != StoreRule.APPEND else 0
            window, seen = self.rng.randint(0, 40), self.rng.randint(0, 90)
            protects = self.rng.randint(0, 3)
            plans.append(HeadPlan(length, rule, fixed, protects, window, seen, period, room=10**6))
        return make_records(plans, self.L, self.H, self.S)

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
        old = self.rng.randint(1, 4)
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
        lengths = records.view(-1, len(HeadField))[:, HeadField.LENGTH].long()
        kept = torch.randint(0, old * self.S, (int(lengths.sum()),), generator=self.torch)
        return {
            **cache,
            "saved": saved,
            "old_row": old_row,
            "new_row": new_row,
            "kept": kept.int(),
            "kept_start": torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]),
            "kept_value": torch.rand(len(kept), generator=self.torch),
            "heads": records,
        }

    def prompt(self) -> tuple[int, Values]:
        tokens = self.rng.choice([1, self.S - 1, self.S, 2 * self.S + 5])
        count = -(-tokens // self.S)
        num_blocks = count + self.rng.randint(0, 2)
        row = self.blocks(count, num_blocks)
        return tokens, {"arena": self.cache(num_blocks)["arena"], "block_row": row}

    def attention_mass(self) -> Values:
        tokens, prompt = self.prompt()
        queries = self.rng.randint(0, min(tokens, 9))
        mass, energy = torch.zeros(2, self.H, tokens + self.rng.randint(0, 3))
        return {
            **prompt,
            "query": self.randn(queries, self.H * self.G, self.D),
            "layer": self.rng.randrange(self.L),
            "first_position": tokens - queries,
            "scale": self.D**-0.5,
            "pool": self.rng.choice(["mean", "max", "min"]),
            "mass": mass,
            "energy": energy,
        }

    def value_norm(self) -> Values:
        tokens, prompt = self.prompt()
        return {**prompt, "norm": torch.zeros(self.L, self.H, tokens)}


# -- spoiling it ---------------------------------------------------------------------------------

#: Arguments whose numbers may be wrong.
CONTENTS = {
    "token_index",
    "lanes",
    "block_rows",
    "token_position",
    "heads",
    "old_row",
    "new_row",
    "kept",
    "kept_start",
    "block_row",
    "positions",
    "values",
}


def spoil(case: Case, rng: random.Random) -> None:
    """Put a number into the case that nobody expects there, or cut a row of blocks short."""
    names = sorted(CONTENTS & case.arguments.keys())
    name = rng.choices(
        names, [6 if name == "heads" else 2 if "row" in name else 1 for name in names]
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
    if name == "heads":
        field = rng.choice(list(HeadField))
        place = place // len(HeadField) * len(HeadField) + field
        name = f"heads, {field.name}"
    case.wrong.append(f"{name}[{place}] = {number}")
    tensor.view(-1)[place] = min(number, INT_MAX) if tensor.dtype == torch.int32 else number


# -- what is expected ----------------------------------------------------------------------------


def is_record(record: list[int]) -> bool:
    """Whether a plan could have made it."""
    least = all(n >= 0 for field, n in enumerate(record) if field != HeadField.PROTECTS)
    skips = record[HeadField.SKIP_PAGES] == 0 or record[HeadField.SKIP_PERIOD] > 0
    most = record[HeadField.LENGTH] < MOST_SLOTS and record[HeadField.RULE] <= max(StoreRule)
    return least and skips and most


def pages_of(record: list[int], num_slots: int, slots: int) -> Iterator[int]:
    """Stream pages of a head's first slots."""
    for page in range(-(-num_slots // slots)):
        grown = page - record[HeadField.NUM_PAGES]
        if grown < 0:
            yield record[HeadField.FIRST_PAGE] + page
            continue
        skip = record[HeadField.SKIP_PAGES]
        yield (
            record[HeadField.GROWTH_PAGE]
            + grown * record[HeadField.GROWTH_STRIDE]
            + (grown // record[HeadField.SKIP_PERIOD] * skip if skip else 0)
        )


def slots_to_store(record: list[int], position: int, slots: int) -> int:
    """Slots that are used when a token is stored; 0 if it cannot be."""
    length, room = record[HeadField.LENGTH], record[HeadField.ROOM]
    if not 0 <= position < MOST_SLOTS:
        return 0
    period, beyond = record[HeadField.GROWTH_PERIOD], max(0, position + 1 - room)
    grown = -(-beyond // slots) // period if period else 0
    granted = (record[HeadField.NUM_PAGES] + grown) * slots
    if record[HeadField.RULE] == StoreRule.APPEND or length < granted:
        return length + 1
    return length if length == granted else 0


@dataclass
class Head:
    """One head of a call, and the stream pages that the call uses of it."""

    record: Tensor
    row: Tensor
    pages: list[int] | None  # None: the record is wrong, or its row is too short

    @classmethod
    def of(
        cls, case: Case, record: Tensor, row: Tensor, slots: Callable[[list[int]], int]
    ) -> "Head":
        fields = record.tolist()
        L, _, H = case.arena.shape[:3]
        S = case.arena.shape[3] // 2
        num_slots = slots(fields) if is_record(fields) else -1
        # A page of a stream is used once at most, so there cannot be more than that.
        if num_slots < 0 or num_slots > MOST_SLOTS:
            return cls(record, row, None)
        pages = []
        for page in pages_of(fields, num_slots, S):
            if page >= len(row) * L * H:
                return cls(record, row, None)
            pages.append(page)
        return cls(record, row, pages)

    def blocks(self, per_block: int) -> list[int]:
        """Blocks up to the last that is used."""
        if not self.pages:
            return []
        return self.row[: max(self.pages) // per_block + 1].tolist()

    def is_there(self, per_block: int, num_blocks: int) -> bool:
        """Whether every page that is used lies in the pool."""
        return self.pages is not None and all(
            0 <= block < num_blocks for block, _ in self.places(per_block)
        )

    def places(self, per_block: int) -> list[tuple[int, int]]:
        """Block and page of what is used."""
        return [(int(self.row[p // per_block]), p % per_block) for p in self.pages or ()]


class Expected:
    """What a case's numbers mean: whether it is legal, and if so whether its result is defined."""

    def __init__(self, case: Case) -> None:
        self.case = case
        a, S = case.arguments, case.arena.shape[3] // 2
        L, self.num_blocks, H = case.arena.shape[:3]
        self.per_block = L * H
        self.heads: list[Head] = []  # of requests that are somebody's, request by request
        self.tokens: list[int] = []  # of those requests
        self.is_legal = True
        self.is_defined = True  # nothing is written twice, or read by one and written by another
        if case.op in ("store", "decode_attention"):
            self._step(a, S)
        elif case.op == "compact":
            self._compact(a, S)
        else:
            self._prompt(a, S)
        for head in self.heads:
            self.is_legal &= head.pages is not None and self._in_pool(head.blocks(self.per_block))
        if self.is_legal:
            used = [place for head in self.heads for place in head.places(self.per_block)]
            self.is_defined &= len(set(used)) == len(used)

    def _in_pool(self, blocks: list[int], pool: int | None = None) -> bool:
        return all(0 <= block < (self.num_blocks if pool is None else pool) for block in blocks)

    def _step(self, a: Values, S: int) -> None:
        lanes, tokens = a["lanes"].tolist(), a["token_index"].tolist()
        num_tokens = len(a["query"] if "query" in a else a["key"])
        exist = [
            0 <= lane < len(a["heads"]) and 0 <= token < num_tokens
            for lane, token in zip(lanes, tokens, strict=True)
        ]
        self.is_legal = all(exist) and len(set(lanes)) == len(lanes)
        self.is_defined = len(set(tokens)) == len(tokens)
        for r in range(len(lanes)):
            if not exist[r]:
                continue
            self.tokens.append(tokens[r])
            for head in range(self.case.arena.shape[2]):

                def slots(record: list[int], r: int = r) -> int:
                    if self.case.op == "decode_attention":
                        return record[HeadField.LENGTH] or -1
                    return slots_to_store(record, int(a["token_position"][r]), S) or -1

                record = a["heads"][lanes[r], a["layer"], head]
                self.heads.append(Head.of(self.case, record, a["block_rows"][r], slots))

    def _compact(self, a: Values, S: int) -> None:
        start, kept = a["kept_start"].tolist(), a["kept"].tolist()
        records = a["heads"].view(-1, len(HeadField))
        lengths = records[:, HeadField.LENGTH].tolist()
        ends = [to - begin for begin, to in pairwise(start)]
        old, new = a["old_row"].tolist(), a["new_row"].tolist()
        self.is_legal = (
            start[0] == 0
            and start[-1] == len(kept)
            and ends == lengths
            and all(0 <= token < len(old) * S for token in kept)
            and self._in_pool(old, self.num_blocks + a["saved"].shape[1])
        )
        self.is_defined = not set(old) & set(new)
        for record in records:
            self.heads.append(
                Head.of(self.case, record, a["new_row"], lambda r: r[HeadField.LENGTH])
            )

    def _prompt(self, a: Values, S: int) -> None:
        norm = self.case.op == "value_norm"
        tokens = a["norm"].shape[2] if norm else a["first_position"] + len(a["query"])
        row = a["block_row"].tolist()
        used = -(-tokens // S)
        self.is_legal = len(row) >= used and self._in_pool(row[:used])


# -- comparing -----------------------------------------------------------------------------------


def call(op: Callable[..., None], case: Case) -> None:
    """Call an op with the case's arguments."""
    names = inspect.signature(op).parameters
    op(*(case.arguments[name] for name in names))


def assert_same(actual: Case, expected: Case) -> None:
    """Compare all tensors of two cases, after their calls."""
    exact = actual.op in ("store", "compact")
    error = 0.0 if exact else 2e-2 if actual.arena.dtype != torch.float32 else 1e-4
    for name, tensor in expected.arguments.items():
        if isinstance(tensor, Tensor):
            torch.testing.assert_close(
                actual.arguments[name],
                tensor,
                rtol=error,
                atol=error,
                equal_nan=True,
                msg=lambda text, name=name: f"{name}: {text}",
            )


def check_on_cpu(case: Case, pairs: bool) -> None:
    """Call an op of the CPU; a case that is not legal must be refused, with nothing written."""
    expected = Expected(case)
    before, actual = case.clone(), case.clone()
    pairs = pairs and case.arena.dtype == torch.bfloat16
    caches = {"arena", "saved"} & actual.arguments.keys() if pairs else set()
    for name in caches:
        actual.arguments[name] = to_pairs(actual.arguments[name])
    refused = None
    try:
        call(getattr(ops, case.op), actual)
    except ValueError as error:
        refused = error
        assert str(error).startswith(f"{case.op}: "), error
    assert (refused is None) == expected.is_legal, refused or "not refused"
    for name in caches:
        actual.arguments[name] = from_pairs(actual.arguments[name])
    if expected.is_legal:
        if not expected.is_defined:
            return
        call(getattr(reference, case.op), before)
    assert_same(actual, before)


def main() -> int:
    """Make calls until there are enough, or one fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.ops.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="make this one case, and show it")
    options = parser.parse_args()
    torch.set_num_threads(2)
    numbers = range(options.seed, options.seed + options.cases)
    if options.only is not None:
        numbers = range(options.only, options.only + 1)
    legal = 0
    for number in numbers:
        case = make(number)
        print(f"case {number}: {case.op}, {'; '.join(case.wrong)}", file=sys.stderr, flush=True)
        if options.only is not None:
            print(case, file=sys.stderr)
        set_isa(random.Random(number))
        check_on_cpu(case, pairs=number % 2 == 0)
        legal += Expected(case).is_legal
    print(f"{len(numbers)} cases, {legal} legal")
    return 0


def set_isa(rng: random.Random) -> None:
    """Take any instruction set of this processor."""
    names = ["baseline", "avx2", "avx512", "avx512bf16", "amx"]
    rng.shuffle(names)
    for name in names:
        try:
            return torch.ops.fastgen.set_isa(name)
        except ValueError:
            continue


if __name__ == "__main__":
    sys.exit(main())
