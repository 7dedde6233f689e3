"""Contestants timed in turns, so that what else the machine does meets all of them alike."""

import json
import math
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    turn: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Milliseconds a call, {name: [one a round]}.

    Args:
      contestants: functions that return when their work is done; each runs once before, which compiles and warms up.
      rounds: in each, every contestant has a turn.
      turn: seconds that a turn takes at least: calls are repeated, and their mean is the turn's figure.
      clock: `time.process_time` is CPU time of all threads.
    """
    repeats = dict.fromkeys(contestants, 1)
    for name, call in contestants.items():
        call()
        if turn:
            start = time.perf_counter()
            call()
            repeats[name] = math.ceil(turn / (time.perf_counter() - start))
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            start = clock()
            for _ in range(repeats[name]):
                call()
            times[name].append(1e3 * (clock() - start) / repeats[name])
    return times


def ratio(times: Mapping[str, list[float]], of: str, to: str) -> float:
    """Returns median over the rounds of one contestant's time over another's."""
    return statistics.median(a / b for a, b in zip(times[of], times[to], strict=True))


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Returns {name: median over the rounds}."""
    return {name: statistics.median(values) for name, values in times.items()}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the quartiles of the rounds' figures; of one round they are its figure."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
    return low, median, high


def machine() -> str:
    """Describes the machine and the versions that the figures are of."""
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"


def write_json(path: pathlib.Path | None, content: Any) -> None:
    """Writes the figures where --json says, if it says."""
    if path:
        path.write_text(json.dumps(content, indent=1) + "\n")
