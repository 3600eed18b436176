"""Where a head's pages lie: page streams as arithmetic on tensors."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastgen_vllm.geometry import HeadField
from fastgen_vllm.pages.size import cdiv


class FoldedHeads(NamedTuple):
    """Where the pages of every (request, head) lie: ``J = R*H`` heads, the longest has ``P`` pages.

    Entries beyond a head's last page are 0.
    """

    pages: Tensor  # [J, P] int32, rows of a cache [L*B*H, ...]
    metadata: Tensor  # [J, P] int64, rows of positions and values [B*L*H, S]


def stream_pages(records: Tensor, page: Tensor, pages_per_block: int) -> Tensor:
    """Stream page of each head's pages; drawn in :mod:`fastgen_vllm.pages`.

    Args:
        records: [..., 16] head records.
        page: [P], which of the head's pages.
        pages_per_block: ``L*H``.

    Returns:
        [..., P].
    """

    def of(name: HeadField) -> Tensor:
        return records[..., name, None]

    stock = of(HeadField.STOCK_PAGE) + page * pages_per_block
    own = page - of(HeadField.STOCK_PAGES)
    beyond = own - of(HeadField.NUM_PAGES)
    growth = of(HeadField.GROWTH_PAGE) + beyond * of(HeadField.GROWTH_STRIDE)
    skipped = beyond // of(HeadField.SKIP_PERIOD).clamp(min=1) * of(HeadField.SKIP_PAGES)
    fixed_or_growth = torch.where(beyond < 0, of(HeadField.FIRST_PAGE) + own, growth + skipped)
    return torch.where(own < 0, stock, fixed_or_growth)


def locate(
    slots: Tensor, record: Tensor, block_row: Tensor, pages_per_block: int, page_slots: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Block, page in the block and slot in the page of one head's slots.

    Args:
        slots: [n] int64.
        record: [16] int32 head record.
        block_row: [M], the blocks of the page stream.
    """
    stream = stream_pages(record, slots // page_slots, pages_per_block)
    return (
        block_row[stream // pages_per_block].long(),
        stream % pages_per_block,
        slots % page_slots,
    )


def fold_heads(
    records: Tensor, block_rows: Tensor, page_slots: int, cache: tuple[int, int, int]
) -> FoldedHeads:
    """Page tables of one layer's heads. The host reads the greatest length.

    Args:
        records: [R, H, 16] int32 head records of one layer.
        block_rows: [R, M] int32, the blocks of each page stream.
        page_slots: ``S``.
        cache: ``L, B, H``.
    """
    num_layers, num_blocks, num_heads = cache
    most = cdiv(int(records[..., HeadField.LENGTH].max()), page_slots)
    page = torch.arange(most, device=records.device)
    per_block = num_layers * num_heads
    stream = stream_pages(records, page, per_block)  # [R, H, P]
    used = page * page_slots < records[..., HeadField.LENGTH, None]
    stream = stream.where(used, 0).long()
    index = (stream // per_block).flatten(1)
    block = block_rows.long().gather(1, index).view_as(stream)
    in_block = stream % per_block
    layer, head = in_block // num_heads, in_block % num_heads
    pages = ((layer * num_blocks + block) * num_heads + head).where(used, 0)
    metadata = (block * per_block + in_block).where(used, 0)
    return FoldedHeads(pages.flatten(0, 1).int(), metadata.flatten(0, 1))
