"""Triton's kernel that the self-check stands beside ours, in Triton's interpreter."""

import os
import subprocess
import sys

COMPARE = """
import torch
from fastgen_vllm.selfcheck.paged import PagedAttention

R, H, G, D, S, N = 2, 2, 3, 32, 16, 203
random = torch.Generator().manual_seed(0)
M = -(-N // S)
# Slots first, and more blocks than the table has.
cache = torch.randn(R * M + 3, S, H, 2 * D, generator=random).transpose(1, 2)
table = torch.randperm(R * M + 3, generator=random)[: R * M].view(R, M).int()
query = torch.randn(R, H * G, D, generator=random)
pages = cache[table.long()].transpose(1, 2).reshape(R, H, -1, 2 * D)[:, :, :N]
key, value = pages.chunk(2, -1)
expected = torch.softmax(query.view(R, H, G, D) @ key.mT * D**-0.5, -1) @ value
for splits in (1, 4, 8):  # of eight the last ones have no token
    output = torch.full_like(query, float("nan"))
    PagedAttention(cache, table, N, G, splits)(query, output)
    torch.testing.assert_close(output, expected.view_as(query), rtol=1e-5, atol=1e-6)
"""


def test_it_attends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMPARE],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
