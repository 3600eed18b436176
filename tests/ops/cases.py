"""Random caches and head records for the tests of the ops.

The cache starts as NaN, so a kernel that lets an unused slot into its result is found out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen_vllm.geometry import HeadField, StoreRule
from fastgen_vllm.ops import reference
from fastgen_vllm.pages.fold import stream_pages

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
POOLS = ["mean", "max", "min"]
# (S, D, G)
SHAPES = [(32, 64, 3), (32, 32, 1), (64, 96, 2), (32, 128, 4), (128, 64, 7), (64, 256, 8)]


def generator(*seed: object) -> torch.Generator:
    """Make a generator that differs between cases and repeats between runs."""
    return torch.Generator().manual_seed(sum(ord(c) for c in repr(seed)))


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of the exact result."""
    return float((actual.double() - exact).norm() / exact.norm())


@dataclass
class Cache:
    """A cache with odd strides and its metadata."""

    arena: Tensor  # [L, B, H, 2*S, D]
    positions: Tensor  # [B, L*H, S]
    values: Tensor  # [B, L*H, S]

    @property
    def slots(self) -> int:
        return self.arena.shape[3] // 2

    def clone(self) -> "Cache":
        return Cache(self.arena.clone(), self.positions.clone(), self.values.clone())


def make_cache(
    dtype: torch.dtype, L: int, B: int, H: int, S: int, D: int, fill: float = float("nan")
) -> Cache:
    """Lay blocks outermost, with a gap between them: strides that only the view knows."""
    backing = torch.full((B, L, H + 1, 2 * S, D), fill, dtype=dtype)
    return Cache(
        backing[:, :, 1:].permute(1, 0, 2, 3, 4),
        torch.full((B, L * H, S), -1, dtype=torch.int32),
        torch.zeros(B, L * H, S),
    )


def random_blocks(count: int, of: int, rng: torch.Generator) -> Tensor:
    """Distinct, scattered block ids, int32."""
    return torch.randperm(of, generator=rng)[:count].int()


def random_tokens(
    count: int, D: int, dtype: torch.dtype, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """K and V ``[count, D]``."""
    key, value = torch.randn(2, count, D, generator=rng).to(dtype)
    return key, value


@dataclass
class HeadPlan:
    """What a head of a test is to look like."""

    length: int
    rule: StoreRule = StoreRule.APPEND
    fixed: int | None = None  # pages of the fixed interval; default: what the length needs
    protects: int = 0
    window: int = 0
    observed_from: int = 0
    growth_period: int = 0  # of a head that does not append
    room: int = 0  # beyond which a head that does not append grows


def make_records(
    plans: list[HeadPlan], L: int, H: int, S: int, stock: int = 0, read_only: int = 0
) -> tuple[Tensor, int]:
    """Records int32 ``[L, H, 16]`` of one lane and the pages its stream needs, with room to grow.

    Heads that append skip a page of every other growing head after two pages of their own. The
    first ``stock`` blocks of the stream are as in a stock row, the first ``read_only`` stay as they
    are.
    """
    own = [max(0, -(-p.length // S) - stock) for p in plans]
    fixed = [count if p.fixed is None else p.fixed for p, count in zip(plans, own, strict=True)]
    full = [i for i, p in enumerate(plans) if p.rule == StoreRule.APPEND]
    slow = [i for i, p in enumerate(plans) if i not in full and p.growth_period]
    total = stock * L * H + sum(fixed)
    records = torch.zeros(L * H, len(HeadField), dtype=torch.int32)
    growth = 1
    for i, plan in enumerate(plans):
        records[i, HeadField.STOCK_PAGES] = stock
        records[i, HeadField.STOCK_PAGE] = i
        records[i, HeadField.READ_ONLY] = read_only
        records[i, HeadField.FIRST_PAGE] = stock * L * H + sum(fixed[:i])
        records[i, HeadField.NUM_PAGES] = fixed[i]
        records[i, HeadField.SKIP_PERIOD] = 2
        if i in full:
            records[i, HeadField.GROWTH_PAGE] = total + full.index(i)
            records[i, HeadField.GROWTH_STRIDE] = len(full)
            records[i, HeadField.GROWTH_PERIOD] = 1
            records[i, HeadField.SKIP_PAGES] = len(slow)
        elif i in slow:
            records[i, HeadField.GROWTH_PAGE] = total + 2 * len(full) + slow.index(i)
            records[i, HeadField.GROWTH_STRIDE] = 2 * len(full) + len(slow)
            records[i, HeadField.GROWTH_PERIOD] = plan.growth_period
            records[i, HeadField.ROOM] = plan.room
        records[i, HeadField.LENGTH] = plan.length
        records[i, HeadField.RULE] = plan.rule
        records[i, HeadField.PROTECTS] = plan.protects
        records[i, HeadField.WINDOW] = plan.window
        records[i, HeadField.OBSERVED_FROM] = plan.observed_from
        growth = max(growth, plan.length // S + 1 - stock - fixed[i])
    return records.view(L, H, -1), total + (growth + 2) * (len(full) + len(slow))


def write_stream(cache: Cache, row: Tensor, record: Tensor, key: Tensor, value: Tensor) -> None:
    """Put K and V ``[LENGTH, D]`` into a head's slots."""
    H = cache.arena.shape[2]
    for first in range(0, key.shape[0], cache.slots):
        block, page, _ = reference.slot_of(cache.arena, row, record, first)
        k, v = reference.page_of(cache.arena, page // H, block, page % H)
        count = min(cache.slots, key.shape[0] - first)
        k[:, :count] = key[first : first + count].T
        v[:count] = value[first : first + count]


def write_stock(
    cache: Cache, layer: int, row: Tensor, head: int, key: Tensor, value: Tensor
) -> None:
    """Put K and V ``[N, D]`` into a prompt's stock pages."""
    for index in range(-(-key.shape[0] // cache.slots)):
        k, v = reference.page_of(cache.arena, layer, int(row[index]), head)
        tokens = slice(index * cache.slots, (index + 1) * cache.slots)
        count = key[tokens].shape[0]
        k[:, :count] = key[tokens].T
        v[:count] = value[tokens]


def as_stream(cache: Cache, row: Tensor, rng: torch.Generator) -> tuple[Cache, Tensor, Tensor]:
    """The pages of a stock row as a page stream: cache, block row, records ``[L, H, 16]``.

    No two neighbours among the heads have as many stock pages, fixed pages and pages of growth.
    """
    L, _, H, rows, D = cache.arena.shape
    pages, per_block = torch.arange(len(row)), L * H
    records = torch.zeros(per_block, len(HeadField), dtype=torch.int32)
    fixed_end = 2 * per_block
    for i, record in enumerate(records):
        record[HeadField.STOCK_PAGES], record[HeadField.STOCK_PAGE] = i % 3, i
        record[HeadField.FIRST_PAGE], record[HeadField.NUM_PAGES] = fixed_end, (i + 1) % 3
        fixed_end += (i + 1) % 3
    records[:, HeadField.GROWTH_PAGE] = fixed_end + torch.arange(per_block).flip(0)
    records[:, HeadField.GROWTH_STRIDE], records[:, HeadField.GROWTH_PERIOD] = per_block, 1
    records[:, HeadField.SKIP_PERIOD], records[:, HeadField.SKIP_PAGES] = 2, 3
    stream = stream_pages(records, pages, per_block)  # [L*H, pages]
    blocks = int(stream.max()) // per_block + 1
    to = make_cache(cache.arena.dtype, L, blocks + 2, H, rows // 2, D)
    to_row = random_blocks(blocks, blocks + 2, rng)
    for i, each in enumerate(stream):
        block, page = to_row[each // per_block].long(), each % per_block
        to.arena[page // H, block, page % H] = cache.arena[i // H, row.long(), i % H]
        to.positions[block, page] = cache.positions[row.long(), i]
        to.values[block, page] = cache.values[row.long(), i]
    return to, to_row, records.view(L, H, -1)


def random_kept(
    lengths: list[int], num_tokens: int, rng: torch.Generator
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Tokens that heads keep, so many of each: per head, where each head's start, their values."""
    kept = [torch.randperm(num_tokens, generator=rng)[:n].sort().values.int() for n in lengths]
    return kept, torch.tensor([0, *lengths]).cumsum(0), torch.rand(sum(lengths), generator=rng)
