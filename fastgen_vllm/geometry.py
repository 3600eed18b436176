"""Dimension letters, cache geometry and the head record that kernels read.

Letters used in every shape comment of the project:

    L  layers that own KV            S  slots of a page (= vLLM's block_size)
    H  KV heads of this rank         N  tokens of a prompt
    G  query heads per KV head       R  requests of a step
    D  head size                     B  blocks of the pool
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag


@dataclass(frozen=True)
class CacheGeometry:
    """What one vLLM block holds, for one rank.

    A block is ``L * H`` pages; a page is ``S`` slots of one (layer, head).
    """

    num_layers: int  # L
    num_kv_heads: int  # H
    group_size: int  # G
    head_size: int  # D
    block_size: int  # S
    num_blocks: int  # B

    @property
    def pages_per_block(self) -> int:
        """Pages of one block: ``L * H``."""
        return self.num_layers * self.num_kv_heads

    @property
    def num_pages(self) -> int:
        """Pages of the whole pool: ``B * L * H``."""
        return self.num_blocks * self.pages_per_block


class HeadField(IntEnum):
    """Columns of a head record, an int32 row of the tensor ``heads[lane, L, H, :]``.

    A *lane* is the worker's row number for one compacted request. The csrc twin is
    ``HeadRecord`` in ``csrc/include/fastgen/head_record.h``; keep both in one order.
    """

    STOCK_PAGES = 0  # first pages that lie as in a stock row: one in each block
    STOCK_PAGE = 1  # which page of a block those are: l * H + h
    READ_ONLY = 2  # first pages that are never written, valued or freed: others read them
    FIRST_PAGE = 3  # first stream page of the head's fixed interval
    NUM_PAGES = 4  # pages of the fixed interval
    GROWTH_PAGE = 5  # stream page that the head grows by first
    GROWTH_STRIDE = 6  # distance from one growth page to the next, but for skipped ones
    GROWTH_PERIOD = 7  # steps of growth that bring the head a page; 0: it never grows
    SKIP_PERIOD = 8  # growth pages after which pages of other heads are skipped
    SKIP_PAGES = 9  # how many are skipped
    ROOM = 10  # stored tokens of the request until growth begins
    LENGTH = 11  # slots in use
    RULE = 12  # StoreRule
    PROTECTS = 13  # TokenClass bits that this head never frees
    WINDOW = 14  # most recent tokens that are never freed
    OBSERVED_FROM = 15  # first observed query position, for averaging values


class StoreRule(IntEnum):
    """Where a new token goes when a head stores it."""

    APPEND = 0  # always the next slot: the head grows by as many slots as tokens come
    BY_VALUE = 1  # the next slot; if there is none, that of the least average attention
    BY_AGE = 2  # the next slot; if there is none, that of the oldest token
    BY_ENERGY = 3  # the next slot; if there is none, that of the least average squared attention

    @property
    def values_tokens(self) -> bool:
        """Whether such heads accumulate a value for every slot."""
        return self in (StoreRule.BY_VALUE, StoreRule.BY_ENERGY)


class TokenClass(IntFlag):
    """What a token is, as far as policies care."""

    PLAIN = 0
    SPECIAL = 1
    PUNCTUATION = 2
