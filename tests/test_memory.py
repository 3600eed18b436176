"""Huge pages: asked for, given, and without harm to what is stored."""

import re
from pathlib import Path

import pytest
import torch

from fastgen_vllm.memory import use_huge_pages

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def huge_kib() -> int:
    """KiB of this process in huge pages."""
    smaps = Path("/proc/self/smaps_rollup").read_text()
    found = re.search(r"AnonHugePages:\s+(\d+) kB", smaps)
    assert found is not None
    return int(found[1])


def test_storage_moves_to_huge_pages_and_keeps_its_contents() -> None:
    if not ENABLED.exists() or "[never]" in ENABLED.read_text():
        pytest.skip("transparent huge pages are off on this machine")
    before = huge_kib()  # the kernel may give huge pages at once
    numbers = torch.arange(16 << 20, dtype=torch.int32)  # 64 MiB
    if not use_huge_pages(numbers[7:]):
        pytest.skip("this Linux cannot collapse pages at once, or has no free huge pages")
    assert huge_kib() - before >= 60 << 10
    assert torch.equal(numbers, torch.arange(16 << 20, dtype=torch.int32))


def test_what_is_smaller_than_a_huge_page_stays() -> None:
    assert not use_huge_pages(torch.zeros(10))
