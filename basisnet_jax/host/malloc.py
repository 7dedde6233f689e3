"""Makes the C library's allocator keep freed memory: each training step frees and allocates the same arrays."""

import os
import platform
import sys

# glibc's names, for the environment of a process: https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html
_TUNABLES = {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 2**62, "top_pad": 64 * 2**20}


def restart_with_malloc_settings(arenas: int | None = 1) -> None:
    """Restarts this program so that glibc's allocator keeps freed memory; for a script's first line.

    By default glibc returns arrays of more than 32 MB (less, in a thread) to the system when they are freed, and the
    next step gets them page by page. On CPU that can be more than half of a training step (docs/design/performance.md).
    With these settings glibc returns nothing, and memory that threads of another heap than the first still map
    separately comes in huge pages. The process keeps its peak memory; results do not change. glibc reads the settings
    as a process starts, so this function replaces the process by the same command line, and returns in the new process.
    Where the environment already tunes the allocator, or the C library is not glibc, the function returns at once.

    Args:
      arenas: number of heaps; each thread uses one. A single heap keeps even the largest array. None is glibc's
        default, which is faster where a process compiles much and has small arrays, as in training on CPU: compilers
        fragment a heap.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    if platform.libc_ver()[0] == "glibc":
        tunables = _TUNABLES if arenas is None else {**_TUNABLES, "arena_max": arenas}
        os.environ["GLIBC_TUNABLES"] = ":".join(f"glibc.malloc.{name}={value}" for name, value in tunables.items())
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
