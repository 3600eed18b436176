"""How many blocks a compacted request needs: all that the scheduler has to know."""

from typing import NamedTuple


def cdiv(a: int, b: int) -> int:
    """Ceiling of ``a / b`` for non-negative integers."""
    return -(-a // b)


class StreamSize(NamedTuple):
    """Size of a page stream as a function of the request's length."""

    fixed_pages: int  # pages of all heads at compaction
    num_growing: int  # heads that append: one more page each per S tokens
    room: int  # tokens, prompt and generated, until the heads that append must grow
    pages_per_block: int  # L * H
    block_size: int  # S

    def pages(self, num_tokens: int) -> int:
        """Stream pages of a request with ``num_tokens`` stored tokens."""
        growth = cdiv(max(0, num_tokens - self.room), self.block_size)
        return self.fixed_pages + self.num_growing * growth

    def blocks(self, num_tokens: int) -> int:
        """Blocks of a request with ``num_tokens`` stored tokens."""
        return cdiv(self.pages(num_tokens), self.pages_per_block)
