"""Huge pages: asked for, given, and without harm to what is stored."""

import re
from pathlib import Path

import pytest
import torch

from fastgen_vllm.memory import use_huge_pages

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def huge_kib(tensor: torch.Tensor) -> int:
    """KiB in huge pages of the mappings in which the tensor lies."""
    start, huge, inside = tensor.data_ptr(), 0, False
    stop = start + tensor.nbytes
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if mapping := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(mapping[1], 16) < stop and start < int(mapping[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            huge += int(line.split()[1])
    return huge


def test_storage_moves_to_huge_pages_and_keeps_its_contents() -> None:
    if not ENABLED.exists() or "[never]" in ENABLED.read_text():
        pytest.skip("transparent huge pages are off on this machine")
    numbers = torch.arange(16 << 20, dtype=torch.int32)  # 64 MiB
    if not use_huge_pages(numbers[7:]):
        pytest.skip("this Linux cannot collapse pages at once, or has no free huge pages")
    assert huge_kib(numbers) >= 60 << 10
    assert torch.equal(numbers, torch.arange(16 << 20, dtype=torch.int32))


def test_what_is_smaller_than_a_huge_page_stays() -> None:
    assert not use_huge_pages(torch.zeros(10))
