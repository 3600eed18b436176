"""The records of a stock row: a page stream that consists of stock pages."""

import torch
from torch import Tensor

from fastgen_vllm.geometry import HeadField

#: Pages of a head: more than any request has, and few enough for sums in an int32.
_MOST_PAGES = 1 << 20


def stock_records(num_layers: int, num_heads: int) -> Tensor:
    """[L, H, len(HeadField)] int32 records of a request that has not been compacted.

    Page ``i`` of every head lies in block ``i`` of the row, and slot ``n`` is position ``n``.
    """
    records = torch.zeros(num_layers, num_heads, len(HeadField), dtype=torch.int32)
    records[..., HeadField.STOCK_PAGES] = _MOST_PAGES
    records[..., HeadField.STOCK_PAGE] = torch.arange(num_layers * num_heads).view(num_layers, -1)
    return records
