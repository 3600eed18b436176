"""How many blocks a compacted request needs: all that the scheduler has to know."""

from typing import NamedTuple


def cdiv(a: int, b: int) -> int:
    """Ceiling of ``a / b`` for non-negative integers."""
    return -(-a // b)


class StreamSize(NamedTuple):
    """Size of a page stream as a function of the request's length."""

    fixed_pages: int  # pages of all heads at compaction
    num_full: int  # heads that grow, one page each per S tokens
    prompt_pages: int  # ceil(N / S), pages of a full head at compaction
    pages_per_block: int  # L * H
    block_size: int  # S

    def pages(self, num_tokens: int) -> int:
        """Stream pages of a request with ``num_tokens`` stored tokens."""
        growth = max(0, cdiv(num_tokens, self.block_size) - self.prompt_pages)
        return self.fixed_pages + self.num_full * growth

    def blocks(self, num_tokens: int) -> int:
        """Blocks of a request with ``num_tokens`` stored tokens."""
        return cdiv(self.pages(num_tokens), self.pages_per_block)
