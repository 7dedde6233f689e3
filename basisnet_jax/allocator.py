"""The C library's allocator, told to keep what is freed: a training step frees and asks for the same arrays again."""

import ctypes
import os

# Numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next allocation; elsewhere, and if the environment tunes it, does nothing.

    By default glibc gives arrays of more than 32 MB (less, in a thread) back to the system when they are freed, and
    the next step gets them page by page. On CPU that can be more than half of a training step (docs/performance.md).
    From here on one arena serves all threads, nothing is mapped apart or given back, and the heap grows by 64 MiB. The
    process keeps its peak; results do not change. Threads that have allocated before keep their arenas, so call it
    first.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _PAD_BYTES)):
            mallopt(parameter, value)
