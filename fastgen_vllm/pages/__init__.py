"""The page stream: where the pages of a compacted request's heads lie.

A compacted request owns an ordinary row of vLLM blocks. Their pages, in order, form its
page stream; heads own intervals of it, so no table of page ids is stored or shipped.

    block row:      [ b0          | b1          | b2          | ...      ]
    stream pages:     0 .. LH-1     LH .. 2LH-1   2LH .. 3LH-1
                      each block holds LH = L*H pages

    [0, fixed_pages)      fixed part, one interval per head, in (layer, head) order:
                          capped head:    ceil((kept + 1) / S) pages, never more
                          growing head:   ceil(kept / S) pages
    [fixed_pages, ...)    growth part, in steps of n_growing pages: step j holds the j-th
                          further page of every growing head, in (layer, head) order

    i-th page of a head:  i < num_pages   first_page + i
                          otherwise       fixed_pages + rank + (i - num_pages) * n_growing

So a request of any length needs ``fixed_pages + n_growing * growth(length)`` pages, where growth
starts when the first growing head is full: three integers tell the scheduler everything. Waste:
below one page per head and one block per request.
"""

from fastgen_vllm.pages.plan import StreamPlan
from fastgen_vllm.pages.size import StreamSize

__all__ = ["StreamPlan", "StreamSize"]
