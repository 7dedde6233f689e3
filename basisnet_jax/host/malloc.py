"""The C library's allocator, told to keep what is freed: a training step frees and asks for the same arrays again."""

import os
import platform
import sys

# glibc's names, for the environment of a process: https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html
_TUNABLES = {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 2**62, "top_pad": 64 * 2**20}


def restart_with_malloc_settings(arenas: int | None = 1) -> None:
    """Starts this program again, where that is glibc's, so that it keeps freed memory; for a script's first line.

    By default glibc gives arrays of more than 32 MB (less, in a thread) back to the system when they are freed, and
    the next step gets them page by page. On CPU that can be more than half of a training step (docs/performance.md).
    With these settings nothing is given back, and what threads of another heap than the first still map apart comes in
    huge pages. The process keeps its peak; results do not change. glibc reads them as a process starts: this replaces
    the process by the same command line, and returns there. So it does at once where the environment tunes the
    allocator, or it is not glibc.

    Args:
      arenas: heaps, of which each thread has one. In a single one even the largest array is kept. None is glibc's
        default, which is faster where a process compiles much and has small arrays, as in training on CPU: compilers
        leave a heap in pieces.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    if platform.libc_ver()[0] == "glibc":
        tunables = _TUNABLES if arenas is None else {**_TUNABLES, "arena_max": arenas}
        os.environ["GLIBC_TUNABLES"] = ":".join(f"glibc.malloc.{name}={value}" for name, value in tunables.items())
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
