"""How many blocks a compacted request needs: all that the scheduler has to know."""

from typing import NamedTuple


def cdiv(a: int, b: int) -> int:
    """Ceiling of ``a / b`` for non-negative integers."""
    return -(-a // b)


class StreamSize(NamedTuple):
    """Size of a page stream as a function of the request's length."""

    fixed_pages: int  # pages of all heads at compaction, those of stock blocks among them
    num_appending: int  # A: heads that gain a page in every step of growth
    num_slow: int  # B: heads that gain one in every `slow_period`-th step
    slow_period: int  # k
    room: int  # tokens, prompt and generated, until growth begins
    pages_per_block: int  # L * H
    block_size: int  # S
    stock_blocks: int = 0  # first blocks, which stay where they are: others read them, too

    def steps(self, num_tokens: int) -> int:
        """Steps of growth of a request with ``num_tokens`` stored tokens."""
        return cdiv(max(0, num_tokens - self.room), self.block_size)

    def pages(self, num_tokens: int) -> int:
        """Stream pages of a request with ``num_tokens`` stored tokens."""
        steps = self.steps(num_tokens)
        slow = self.num_slow * (steps // self.slow_period)
        return self.fixed_pages + self.num_appending * steps + slow

    def blocks(self, num_tokens: int) -> int:
        """Blocks of a request with ``num_tokens`` stored tokens."""
        return cdiv(self.pages(num_tokens), self.pages_per_block)
