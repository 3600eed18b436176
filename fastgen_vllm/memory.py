"""Huge pages for the KV cache and what is kept beside it."""

import ctypes
import mmap
import sys

from torch import Tensor

_HUGE_PAGE = 2 << 20  # bytes, on x86-64
_MADV_COLLAPSE = 25  # Linux 6.1; Python's mmap has no name for it


def use_huge_pages(tensor: Tensor) -> bool:
    """Ask Linux to back a large CPU tensor with huge pages, at once.

    Attention hops from page to page of the cache, and every hop into another 4 KiB page of memory
    costs a walk of the page table. Contents stay as they are. Works where
    ``/sys/kernel/mm/transparent_hugepage/enabled`` says ``madvise`` or ``always``.

    Args:
        tensor: any view; its whole storage is meant. Of another device it stays as it is.

    Returns:
        Whether all of it, but for its ragged ends, is in huge pages now.
    """
    if not sys.platform.startswith("linux") or tensor.device.type != "cpu":
        return False
    storage = tensor.untyped_storage()
    begin = -(-storage.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
    size = (storage.data_ptr() + storage.nbytes()) // _HUGE_PAGE * _HUGE_PAGE - begin
    if size <= 0:
        return False
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return all(madvise(begin, size, advice) == 0 for advice in (mmap.MADV_HUGEPAGE, _MADV_COLLAPSE))
