"""Prints the time that .tflite files spend in each operator of LiteRT: one image, one thread.

    taskset -c 0 python benchmarks/litert_profile.py runs/latency/specialist.int8_weights.tflite

'Delegate/...' are XNNPACK's operators, names in capitals are LiteRT's own. Python's LiteRT has no profiler, so this
script uses the C interface of the package's library (libLiteRt.so of ai-edge-litert 2.3).
"""

import argparse
import collections
import ctypes
import pathlib
import re
from typing import Any

import ai_edge_litert
import numpy as np

LIBRARY = ctypes.CDLL(str(pathlib.Path(ai_edge_litert.__file__).parent / "libLiteRt.so"))
C_LIBRARY = ctypes.CDLL(None)
CPU, WRITE = 1, 1  # kLiteRtHwAcceleratorCpu, kLiteRtTensorBufferLockModeWrite
WARM_UP = 20
Handle = ctypes.c_void_p
# A line of the profiler's table: type, start, first ms, average ms, %, cumulative %, KB, times called, name.
ROW = re.compile(r"\s*(\S.*?)\s+[\d.]+\s+[\d.]+\s+([\d.]+)\s+[\d.]+%\s+[\d.]+%\s+[\d.]+\s+(\d+)\s")


class TensorType(ctypes.Structure):
    """LiteRtRankedTensorType; the rank is in the low seven bits of `rank`."""

    _fields_ = (
        ("element", ctypes.c_int32),
        ("rank", ctypes.c_uint32),
        ("dimensions", ctypes.c_int32 * 8),
        ("strides", ctypes.c_uint32 * 8),
    )


def call(name: str, *arguments: Any) -> None:
    """Calls a function of the library, and raises if the function reports an error."""
    status = getattr(LIBRARY, name)(*arguments)
    if status:
        raise RuntimeError(f"{name} gives status {status}")


def made(name: str, *arguments: Any) -> Handle:
    """Returns the value that a function of the library writes to its last argument."""
    handle = Handle()
    call(name, *arguments, ctypes.byref(handle))
    return handle


def add_options(options: Handle, name: bytes, toml: bytes) -> None:
    """Settings that a part of the runtime reads as TOML, and frees."""
    C_LIBRARY.strdup.restype = Handle
    payload, free = Handle(C_LIBRARY.strdup(toml)), ctypes.cast(C_LIBRARY.free, Handle)
    call("LiteRtAddOpaqueOptions", options, made("LiteRtCreateOpaqueOptions", name, payload, free))


def buffers(environment: Handle, model: Handle, compiled: Handle, kind: str) -> tuple[ctypes.c_size_t, Any]:
    """Returns (how many, array of buffers) of kind 'Input' or 'Output', filled with numbers between 0 and 1."""
    first, count = ctypes.c_size_t(0), ctypes.c_size_t()
    signature = made("LiteRtGetModelSignature", model, first)
    call(f"LiteRtGetNumSignature{kind}s", signature, ctypes.byref(count))
    found = (Handle * count.value)()
    for number in range(count.value):
        index, tensor_type, place = ctypes.c_size_t(number), TensorType(), Handle()
        tensor = made(f"LiteRtGetSignature{kind}TensorByIndex", signature, index)
        call("LiteRtGetRankedTensorType", tensor, ctypes.byref(tensor_type))
        needs = made(f"LiteRtGetCompiledModel{kind}BufferRequirements", compiled, first, index)
        buffer = made("LiteRtCreateManagedTensorBufferFromRequirements", environment, ctypes.byref(tensor_type), needs)
        values = np.random.default_rng(0).random(tensor_type.dimensions[: tensor_type.rank & 127], np.float32)
        call("LiteRtLockTensorBuffer", buffer, ctypes.byref(place), WRITE)
        ctypes.memmove(place, values.ctypes.data, values.nbytes)
        call("LiteRtUnlockTensorBuffer", buffer)
        found[number] = buffer
    return count, found


def profile(path: pathlib.Path, runs: int) -> tuple[dict[str, float], dict[str, float]]:
    """Returns ({operator: ms a run}, {operator: how many})."""
    environment = made("LiteRtCreateEnvironment", 0, None)
    model = made("LiteRtCreateModelFromFile", environment, str(path).encode())
    options = made("LiteRtCreateOptions")
    call("LiteRtSetOptionsHardwareAccelerators", options, CPU)
    add_options(options, b"runtime_options_string", b"enable_profiling = true\n")
    add_options(options, b"xnnpack", b"num_threads = 1\n")
    compiled = made("LiteRtCreateCompiledModel", environment, model, options)
    inputs, outputs = (buffers(environment, model, compiled, kind) for kind in ("Input", "Output"))
    profiler = made("LiteRtCompiledModelGetProfiler", compiled)
    for run in range(WARM_UP + runs):
        if run == WARM_UP:
            call("LiteRtStartProfiler", profiler)
        call("LiteRtRunCompiledModel", compiled, ctypes.c_size_t(0), *inputs, *outputs)
    call("LiteRtStopProfiler", profiler)
    summary = ctypes.cast(made("LiteRtGetProfileSummary", profiler, compiled), ctypes.c_char_p).value
    assert summary is not None
    in_run_order = summary.decode().split("Top by Computation Time")[0]
    times: dict[str, float] = collections.defaultdict(float)
    counts: dict[str, float] = collections.defaultdict(float)
    for operator, average, called in ROW.findall(in_run_order):
        times[operator] += float(average) * int(called) / runs
        counts[operator] += int(called) / runs
    return times, counts


def main() -> None:
    """Prints a table a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--runs", type=int, default=100)
    options = parser.parse_args()
    for path in options.files:
        times, counts = profile(path, options.runs)
        print(f"{path.name}: {sum(times.values()):.2f} ms")
        for operator, ms in sorted(times.items(), key=lambda item: -item[1]):
            print(f"{ms:9.3f} ms {counts[operator]:5.0f}  {operator}")


if __name__ == "__main__":
    main()
