"""Memory that a training step frees, kept for the next step."""

from __future__ import annotations

import ctypes
import os
import platform

# mallopt(3) of the GNU C library.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = -1
# From this size on a block is the system's: the library before 2.35 takes no more than the second.
_THRESHOLDS = (1 << 30, 1 << 25)
# What a user sets to tell that library otherwise.
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """From now on this process keeps the memory that it frees; whether the C library was told so.

    A training step on a CPU allocates its activations anew. The GNU C library gives large blocks back
    to the system and gets them again page by page, each filled with zeros: 9,000 pages for a step of
    ResNet-20 on 64 images, a tenth of its time (docs/lab/speed.md). The process is as large as it ever
    was until it ends, or `malloc_trim(0)` of that library is called. An allocator that is loaded in its
    place, such as jemalloc, does not listen.

    False, and nothing changed, on other systems, and where an environment variable of that library
    (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES) says what is wanted.

    >>> keep_freed_memory() in (True, False)
    True
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _SETTINGS):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    taken = any(mallopt(_MMAP_THRESHOLD, size) for size in _THRESHOLDS)
    return taken and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
