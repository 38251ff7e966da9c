"""Keep freed memory for the next step instead of returning it to the kernel, in large pages.

A training step frees and allocates hundreds of megabytes. glibc returns blocks above 32 MiB, and free memory at the top of the
heap, to the kernel at once. To use it again costs a page fault for each 4 KiB: measured 11,000 to 22,000 faults a step, a tenth
of its time on a quiet machine and much more on a virtual one. Three settings of malloc stop this for the whole process, whose
resident memory then stays at its peak.

Where Linux gives pages of 2 MiB to those who ask for them, they are asked for: they are faster to find, which gained 0 to 5 % of a step on
a virtual machine, 2 % on average.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # from malloc.h
_LARGEST = 1 << 30  # bytes of a block on the heap


@cache
def keep_freed_memory() -> bool:
    """Make the C allocator reuse what training frees; False where it has no such setting (it is not glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    c = ctypes.CDLL(None)
    try:
        mallopt = c.mallopt
    except AttributeError:
        return False
    settings = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 64 << 20))
    if not all(mallopt(name, value) == 1 for name, value in settings):
        return False
    _prefer_large_pages(c)
    return True


def _prefer_large_pages(c: ctypes.CDLL) -> None:
    """Ask for large pages in the next gigabyte of the heap, none of which is resident before it is used. If this fails nothing changes."""
    c.malloc.argtypes, c.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    c.free.argtypes, c.free.restype = (ctypes.c_void_p,), None
    c.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    size = _LARGEST - (1 << 20)
    if block := c.malloc(size):
        start = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        c.madvise(start, (block + size - start) // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
        c.free(block)
