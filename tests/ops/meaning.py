"""What the numbers of a call mean: worked out head by head from its record, and page by page."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from fastgen_vllm.geometry import HeadField, StoreRule
from tests.ops.calls import MOST_SLOTS, Case, Values


def is_record(record: list[int]) -> bool:
    """Whether a plan could have made it."""
    least = all(n >= 0 for field, n in enumerate(record) if field != HeadField.PROTECTS)
    skips = record[HeadField.SKIP_PAGES] == 0 or record[HeadField.SKIP_PERIOD] > 0
    most = record[HeadField.LENGTH] < MOST_SLOTS and record[HeadField.RULE] <= max(StoreRule)
    return least and skips and most and record[HeadField.READ_ONLY] <= record[HeadField.STOCK_PAGES]


def pages_of(record: list[int], num_slots: int, slots: int, per_block: int) -> Iterator[int]:
    """Stream pages of a head's first slots."""
    for page in range(-(-num_slots // slots)):
        own = page - record[HeadField.STOCK_PAGES]
        if own < 0:
            yield record[HeadField.STOCK_PAGE] + page * per_block
            continue
        grown = own - record[HeadField.NUM_PAGES]
        if grown < 0:
            yield record[HeadField.FIRST_PAGE] + own
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
    fixed = record[HeadField.READ_ONLY] * slots
    if not 0 <= position < MOST_SLOTS or length < fixed:
        return 0
    period, beyond = record[HeadField.GROWTH_PERIOD], max(0, position + 1 - room)
    grown = -(-beyond // slots) // period if period else 0
    granted = (record[HeadField.STOCK_PAGES] + record[HeadField.NUM_PAGES] + grown) * slots
    if record[HeadField.RULE] == StoreRule.APPEND or length < granted:
        return length + 1
    return length if length == granted and length > fixed else 0


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
        for page in pages_of(fields, num_slots, S, L * H):
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
            self._prompt(a)
        for head in self.heads:
            self.is_legal &= head.pages is not None and self._in_pool(head.blocks(self.per_block))
        if self.is_legal and case.op in ("store", "decode_attention", "compact"):
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
        own = records[:, HeadField.LENGTH].long() - records[:, HeadField.STOCK_PAGES].long() * S
        lengths = own.tolist()
        ends = [to - begin for begin, to in pairwise(start)]
        old, new = a["old_row"].tolist(), a["new_row"].tolist()
        self.is_legal = (
            start[0] == 0
            and start[-1] == len(kept)
            and ends == lengths
            and min(ends) >= 0
            and all(0 <= slot < MOST_SLOTS for slot in kept)
            and self._in_pool(old, self.num_blocks + a["saved"].shape[1])
        )
        self.is_defined = not set(old) & set(new)
        for record in records:
            self.heads.append(
                Head.of(self.case, record, a["new_row"], lambda r: r[HeadField.LENGTH])
            )
        for i, record in enumerate(
            a["old_heads"].view(-1, len(HeadField)) if self.is_legal else ()
        ):
            end = max(kept[start[i] : start[i + 1]], default=-1) + 1
            is_there = Head.of(self.case, record, a["old_row"], lambda _, end=end: end).pages
            self.is_legal &= is_there is not None

    def _prompt(self, a: Values) -> None:
        norm = self.case.op == "value_norm"
        records = a["heads"].flatten(0, 1) if norm else a["heads"][a["layer"]]
        tokens = a["norm"].shape[2] if norm else a["first_position"] + len(a["query"])
        for record in records:
            self.heads.append(Head.of(self.case, record, a["block_row"], lambda _: tokens))
