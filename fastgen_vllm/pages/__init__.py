"""The page stream: where the pages of a compacted request's heads lie.

A compacted request owns an ordinary row of vLLM blocks. Their pages, in order, form its
page stream; heads own intervals of it, so no table of page ids is stored or shipped.

    block row:      [ b0          | b1          | b2          | ...      ]
    stream pages:     0 .. LH-1     LH .. 2LH-1   2LH .. 3LH-1
                      each block holds LH = L*H pages

    [0, P * LH)           stock blocks, the P first ones, which others read, too: page i of every
                          head in block i
    [P * LH, fixed_pages) fixed part, one interval per head, in (layer, head) order; `kept` is what
                          a head keeps beyond the stock blocks:
                          head that appends:  ceil(kept / S) pages
                          any other:          ceil((kept + 1) / S) pages
    [fixed_pages, ...)    growth part, step by step: a page of every head that appends (``A`` of
                          them), and in every ``k``-th step then one of every slowly growing
                          head (``B``), each in (layer, head) order

    i-th page of a head:  i < P               i * LH + (l * H + h); else, with i - P in place of i:
                          i < num_pages       first_page + i
                          beyond, g = i - num_pages:
                            appends           fixed_pages + rank + g * A + g // k * B
                            grows slowly      fixed_pages + k * A + rank + g * (k * A + B)

A request that has not been compacted is a stream of stock blocks only: ``stock_records``.

A step comes with every ``S`` tokens, from when the first head that appends is full, or from the
end of the prompt if none appends. So a request of any length needs ``fixed_pages + A * steps +
B * (steps // k)`` pages: five integers tell the scheduler everything. Waste: below one page per
head and one block per request; a slowly growing head has its page up to ``k`` steps late.
"""

from fastgen_vllm.pages.plan import StreamPlan
from fastgen_vllm.pages.size import StreamSize
from fastgen_vllm.pages.stock import stock_records

__all__ = ["StreamPlan", "StreamSize", "stock_records"]
