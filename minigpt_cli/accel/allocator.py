"""Freed memory is kept for the next step instead of going back to the kernel.

A training step frees and asks again for hundreds of megabytes. glibc returns blocks above 32 MiB, and whatever lies free at the
top of the heap, to the kernel at once, and touching them again is a page fault each 4 KiB: measured 11,000 to 22,000 faults a step,
a tenth of its time on a quiet machine and far more on a virtual one. Two settings of malloc stop that. They hold for the whole
process, whose resident memory then stays at its peak.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # from malloc.h


def keep_freed_memory() -> bool:
    """Make the C allocator reuse what training frees; False where it has no such setting (it is not glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    settings = ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 64 << 20))
    return all(mallopt(name, value) == 1 for name, value in settings)
