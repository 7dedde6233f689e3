"""Checks the runtime without JAX under load: 10,000 calls by 8 threads and by 4 processes, each answer right.

    python benchmarks/serving_load.py [--calls 10000] [--export basisnet_jax/zoo/digits]

A call classifies between 1 and 8 images, drawn by the call's number; its answer must equal, bit for bit, that of a
single caller. Threads share a classifier, or each has its own, as each process has. Memory and threads of a process
are read after a tenth of the calls and at the end. Fails if an answer is wrong, or if memory grows by more than
MOST_GROWTH.
"""

import argparse
import concurrent.futures
import multiprocessing
import pathlib
import re
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

from basisnet_jax.runtime import TwoStageClassifier

THREADS, PROCESSES, IMAGES = 8, 4, 64
MOST_GROWTH = 0.03  # of resident memory, after the first tenth of the calls
EXPORT = pathlib.Path(__file__).resolve().parent.parent / "basisnet_jax" / "zoo" / "digits"

_own = threading.local()


def images_of(classifier: TwoStageClassifier) -> np.ndarray:
    """Returns images that no data set has: noise of several contrasts, so that some exit early."""
    rng = np.random.default_rng(0)
    shape = (IMAGES, classifier.side, classifier.side, classifier.channels)
    return (rng.random(shape) * np.linspace(1, 255, IMAGES).reshape(-1, 1, 1, 1)).astype(np.uint8)


def chosen(call: int) -> np.ndarray:
    """Returns the indices of a call's images."""
    rng = np.random.default_rng(call)
    return rng.integers(0, IMAGES, rng.integers(1, 9))


def _is_right(classifier: TwoStageClassifier, images: np.ndarray, expected: tuple, call: int) -> bool:
    """Classifies a call's images, and returns whether all answers are those of a single caller."""
    indices = chosen(call)
    try:
        answers = classifier.classify(images[indices])
    except Exception:  # LiteRT's
        return False
    return all(np.array_equal(ours, theirs[indices]) for ours, theirs in zip(answers, expected, strict=True))


def by_threads(export: str, calls: int, shared: bool) -> tuple[int, float, dict[str, float]]:
    """Returns (wrong answers, seconds, growth) of calls by THREADS threads."""
    one = TwoStageClassifier.from_export(export)
    images = images_of(one)
    expected = one.classify(images)

    def wrong(own_calls: range) -> int:
        if not hasattr(_own, "classifier"):
            _own.classifier = one if shared else TwoStageClassifier.from_export(export)
        return sum(not _is_right(_own.classifier, images, expected, number) for number in own_calls)

    warm_up = calls // 10
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        count = sum(pool.map(wrong, [range(number, warm_up, THREADS) for number in range(THREADS)]))
        before, began = resources(), time.monotonic()
        count += sum(pool.map(wrong, [range(warm_up + number, calls, THREADS) for number in range(THREADS)]))
        seconds, after = time.monotonic() - began, resources()
    return count, seconds * calls / (calls - warm_up), {name: after[name] / before[name] - 1 for name in before}


def by_processes(export: str, calls: int) -> tuple[int, float, dict[str, float]]:
    """Returns the same of calls by PROCESSES processes, each with a classifier of its own; growth is the largest."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(PROCESSES) as pool:
        parts = [(export, range(number, calls, PROCESSES)) for number in range(PROCESSES)]
        began = time.monotonic()
        results = pool.starmap(_in_a_process, parts)
        seconds = time.monotonic() - began
    growth = {name: max(grown[name] for _, grown in results) for name in results[0][1]}
    return sum(wrong for wrong, _ in results), seconds, growth


def _in_a_process(export: str, calls: range) -> tuple[int, dict[str, float]]:
    classifier = TwoStageClassifier.from_export(export)
    images = images_of(classifier)
    expected = classifier.classify(images)
    wrong, before = 0, resources()
    for done, call in enumerate(calls):
        wrong += not _is_right(classifier, images, expected, call)
        if done == len(calls) // 10:
            before = resources()
    after = resources()
    return wrong, {name: after[name] / before[name] - 1 for name in before}


def resources() -> dict[str, float]:
    """Returns this process's resident memory in KB and its number of threads."""
    status = pathlib.Path("/proc/self/status").read_text()
    return {name: float(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in ("VmRSS", "Threads")}


def main() -> None:
    """Prints a row for each way of calling; fails if a promised one is wrong or grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--export", default=str(EXPORT))
    options = parser.parse_args()
    ways: dict[str, Callable[[], tuple[int, float, dict[str, float]]]] = {
        f"{THREADS} threads, each its own classifier": lambda: by_threads(options.export, options.calls, shared=False),
        f"{THREADS} threads with one classifier": lambda: by_threads(options.export, options.calls, shared=True),
        f"{PROCESSES} processes": lambda: by_processes(options.export, options.calls),
    }
    failed = False
    for name, way in ways.items():
        wrong, seconds, growth = way()
        failed |= bool(wrong) or growth["VmRSS"] > MOST_GROWTH or growth["Threads"] > 0
        print(
            f"{name}: {options.calls:,} calls, {wrong} wrong answers, {options.calls / seconds:.0f} calls/s, "
            + ", ".join(f"{x} {value:+.1%}" for x, value in growth.items()),
            flush=True,
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()
