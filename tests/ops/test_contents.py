"""Numbers in tensors that cannot be: the CPU's ops name them, and have written nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastgen_vllm import ops
from fastgen_vllm.geometry import HeadField, StoreRule
from tests.ops.cases import HeadPlan, make_cache, make_records

L, H, S, D = 2, 2, 32, 32
PAGES = 17  # of the plan
ROW = 5  # blocks that hold them


class Call:
    """Legal calls of one request whose heads fill 17 pages, to be spoiled."""

    def __init__(self) -> None:
        plans = [HeadPlan(n * S - 1, StoreRule.BY_VALUE) for n in (4, 4, 4, 5)]
        records, pages = make_records(plans, L, H, S)
        assert pages == PAGES
        self.cache = make_cache(torch.float32, L, 12, H, S, D, fill=0.0)
        self.heads = records[None].clone()
        self.row = torch.arange(ROW, dtype=torch.int32)
        self.old_row = torch.arange(ROW, 10, dtype=torch.int32)
        self.old_heads = records.clone()
        self.kept = torch.cat([torch.arange(plan.length) for plan in plans]).int()
        self.kept_start = torch.tensor([0, *(plan.length for plan in plans)]).cumsum(0)
        self.lanes = torch.zeros(1, dtype=torch.int32)
        self.token_index = torch.zeros(1, dtype=torch.int64)
        self.token_position = torch.full((1,), 200, dtype=torch.int32)

    def compact(self) -> None:
        ops.compact(
            self.cache.arena,
            self.old_row,
            self.old_heads,
            self.cache.arena[:, :0],
            self.row,
            self.kept,
            self.kept,
            self.kept_start,
            torch.zeros(len(self.kept)),
            self.heads[0],
            self.cache.positions,
            self.cache.values,
        )

    def store(self) -> None:
        key, value = torch.ones(2, 1, H, D)
        ops.store(
            key,
            value,
            self.token_index,
            self.lanes,
            self.row[None].expand(len(self.lanes), -1),
            self.token_position,
            torch.zeros_like(self.token_position),
            1,
            self.cache.arena,
            self.heads,
            self.cache.positions,
            self.cache.values,
        )

    def decode_attention(self) -> None:
        query = torch.ones(1, H, D)
        ops.decode_attention(
            query,
            self.token_index,
            self.lanes,
            self.row[None].expand(len(self.lanes), -1),
            1,
            1.0,
            "mean",
            self.cache.arena,
            self.heads,
            self.cache.values,
            torch.zeros_like(query),
        )

    def queries(self) -> tuple[object, ...]:
        """Of the last tokens of the longest head."""
        query = torch.ones(31, H, D)
        return query, self.cache.arena, 1, self.row, self.heads[0], 4 * S, 1.0, "mean"

    def attention_mass(self) -> None:
        ops.attention_mass(*self.queries(), *torch.zeros(2, H, 5 * S))

    def replay(self) -> None:
        ops.replay(*self.queries(), torch.zeros(2, 0), False, 8, self.cache.values)

    def replayed_mass(self) -> None:
        ops.replayed_mass(*self.queries(), torch.zeros(2, 0), False, *torch.zeros(2, H, 5 * S))

    def value_norm(self) -> None:
        ops.value_norm(self.cache.arena, self.row, self.heads[0], torch.zeros(L, H, 5 * S - 1))


def field(name: HeadField, number: int) -> Callable[[Call], None]:
    """Change the record of head (1, 1)."""

    def spoil(call: Call) -> None:
        call.heads[0, 1, 1, name] = number

    return spoil


def number(tensor: str, place: int, number: int) -> Callable[[Call], None]:
    """Change one number of another tensor."""

    def spoil(call: Call) -> None:
        changed: Tensor = getattr(call, tensor)
        changed[place] = number

    return spoil


def short_row(call: Call) -> None:
    """Four blocks for seventeen pages: the row of another plan."""
    call.row = call.row[:4].clone()


def old_field(name: HeadField, number: int) -> Callable[[Call], None]:
    """Change the record of head (1, 1) in the row that is read."""

    def spoil(call: Call) -> None:
        call.old_heads[1, 1, name] = number

    return spoil


def short_old_row(call: Call) -> None:
    call.old_row = call.old_row[:4].clone()


def same_lane(call: Call) -> None:
    call.lanes = call.lanes.repeat(2)
    call.token_index = call.token_index.repeat(2)
    call.token_position = call.token_position.repeat(2)


STEP = ["store", "decode_attention"]
ALL = ["compact", *STEP, "attention_mass", "replay", "replayed_mass", "value_norm"]
CASES = [
    (ALL, short_row, r"must have 5 blocks for the 1(59|60) slots of heads\[.*1, 1\], got 4"),
    (ALL, number("row", 1, 12), r"must have blocks in \[0, 12\), got 12 as number 1"),
    (ALL, number("row", 0, -1), r"must have blocks in \[0, 12\), got -1 as number 0"),
    (ALL, field(HeadField.NUM_PAGES, -1), "is no head record"),
    (ALL, field(HeadField.LENGTH, -2), "is no head record"),
    (ALL, field(HeadField.RULE, 4), "is no head record"),
    (ALL, field(HeadField.FIRST_PAGE, 2**31 - 1), "must have 5368709.. blocks"),
    (STEP, number("lanes", 0, 1), r"lanes must be in \[0, 1\), got 1"),
    (STEP, number("lanes", 0, -1), r"lanes must be in \[0, 1\), got -1"),
    (STEP, same_lane, "lanes must differ, got 0 twice"),
    (STEP, number("token_index", 0, 1), r"token_index must be in \[0, 1\), got 1"),
    (["store"], number("token_position", 0, -5), "token_position -5 is out of range"),
    (["compact"], number("old_row", 4, 99), r"old_row must have blocks in \[0, 12\), got 99"),
    (
        ["compact"],
        number("kept", 7, 2**30),
        r"kept must have slots in \[0, 1073741824\), got 1073741824",
    ),
    (["compact"], number("kept", 0, -1), r"kept must have slots in \[0, 1073741824\), got -1"),
    (
        ["compact"],
        short_old_row,
        r"old_row must have 5 blocks for the 159 slots of old_heads\[1, 1\]",
    ),
    (["compact"], old_field(HeadField.NUM_PAGES, -1), r"old_heads\[1, 1\] is no head record"),
    (["compact"], number("kept_start", 2, 0), r"kept_start gives -127 tokens to heads\[0, 1\]"),
]


@pytest.mark.parametrize(
    ("op", "spoil", "message"), [(op, spoil, text) for each, spoil, text in CASES for op in each]
)
def test_is_refused(op: str, spoil: Callable[[Call], None], message: str) -> None:
    call = Call()
    spoil(call)
    heads, before = call.heads.clone(), call.cache.clone()
    with pytest.raises(ValueError, match=f"^{op}: .*{message}"):
        getattr(call, op)()
    assert torch.equal(call.heads, heads)
    assert torch.equal(call.cache.arena, before.arena)
    assert torch.equal(call.cache.positions, before.positions)
    assert torch.equal(call.cache.values, before.values)


@pytest.mark.parametrize("op", ALL)
def test_is_legal_otherwise(op: str) -> None:
    getattr(Call(), op)()


def test_a_head_that_replaces_has_no_more_slots_than_it_is_granted() -> None:
    call = Call()
    call.heads[0, 1, 1, HeadField.NUM_PAGES] = 4
    call.heads[0, 1, 1, HeadField.GROWTH_PERIOD] = 0
    with pytest.raises(ValueError, match=r"too early for heads\[0, 1, 1\] with a LENGTH of 159"):
        call.store()
