"""Compiled programs on the device: their time, their launches, and their memory beside the compiler's bill."""

import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import gpu_tasks
import jax
import timing

from basisnet_jax.aot import hlo
from basisnet_jax.errors import UserError
from basisnet_jax.host import devices as devices_lib
from basisnet_jax.host import installed

GIB = 2**30
# Operations of a scheduled program for which a GPU launches nothing; a pair of -start and -done is one launch.
NO_LAUNCH = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier")


def device_tasks(sizes: gpu_tasks.Sizes) -> gpu_tasks.Tasks:
    """Yields what --mode=devices says of this machine, and what it leaves out.

    Raises:
      UserError: there is no GPU, and the sizes are not the tiny ones.
    """
    seen = devices_lib.available()
    if seen[0].platform != "gpu" and not sizes.tiny:
        raise UserError(
            f"JAX sees {devices_lib.described(seen)}, no GPU; python -m basisnet_jax.main --mode=devices says why, and "
            "--tiny runs the check on what there is."
        )
    lines, problems = devices_lib.report("")
    facts = dict(line.split(maxsplit=1) for line in lines[1:])
    names = ("torch", "timm", "triton", "jax-triton")
    others = {name: package.version for name in names if (package := installed.find_installed(name))}
    yield "installation", lambda: {"versions": lines[0], **facts, **others, "cores": os.cpu_count()}
    yield "problems", lambda: {"found": "; ".join(problems) or "none"}
    yield "GPU", lambda: {"nvidia_smi": _nvidia_smi(), "xla_flags": os.environ.get("XLA_FLAGS", "")}


def _nvidia_smi() -> str:
    query = "name,driver_version,memory.total,clocks.max.sm,power.limit"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return "no nvidia-smi"


def launches(compiled: jax.stages.Compiled) -> int:
    """Returns how many operations a run of the program starts: kernels, library calls and copies."""
    program = hlo.parse(compiled.as_text() or "")
    runs = hlo.scheduled(program)
    return sum(times for op, _, times in runs if op.kind not in NO_LAUNCH and not op.kind.endswith("-done"))


def bill(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Returns the memory that the compiler says the program needs, in GiB."""
    memory = compiled.memory_analysis()
    sizes = {"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes}
    return {f"bill_{name}_gib": size / GIB for name, size in {**sizes, "peak": memory.peak_memory_in_bytes}.items()}


def device_peak() -> int:
    """Returns the most bytes that this process has had on the device so far; 0 where JAX does not count them."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def milliseconds(call: Callable[[], Any], sizes: gpu_tasks.Sizes) -> float:
    """Returns the median time of a call in milliseconds, where calls are queued and the last one is waited for."""
    jax.block_until_ready(call())
    start = time.perf_counter()
    jax.block_until_ready(call())
    calls = max(1, math.ceil(sizes.turn / (time.perf_counter() - start)))

    def queue() -> None:
        for _ in range(calls):
            output = call()
        jax.block_until_ready(output)

    return statistics.median(timing.interleaved({"": queue}, rounds=sizes.rounds)[""]) / calls
