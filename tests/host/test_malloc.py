"""Freed memory is kept, in a process of its own: it is started again."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
from basisnet_jax.host import malloc

BYTES = int(sys.argv[2])
malloc.restart_with_malloc_settings({"1": 1, "None": None}[sys.argv[1]])
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counted = []

def work():
    b"x" * BYTES  # NumPy would ask for huge pages
    before = faults()
    for _ in range(5):
        b"x" * BYTES
    counted.append(faults() - before)

work()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(*counted)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is for glibc")
@pytest.mark.parametrize("arenas", ["1", "None"])
@pytest.mark.parametrize("tuned", [False, True])
def test_arrays_are_made_again_from_kept_pages_unless_the_environment_tunes_the_allocator(arenas, tuned):
    size = {"1": 80_000_000, "None": 40_000_000}[arenas]  # a thread's own arena keeps nothing of more than 64 MB
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    if tuned:
        environment["MALLOC_MMAP_THRESHOLD_"] = "1000000"  # glibc's own way: five arrays are mapped page by page
    command = [sys.executable, "-c", FAULTS, arenas, str(size)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    pages = 5 * size // os.sysconf("SC_PAGE_SIZE")
    for faults in map(int, ran.stdout.split()):
        assert (faults > pages // 2) if tuned else (faults < pages // 100), (faults, pages)
