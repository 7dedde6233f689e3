"""What the loop knows of its newest steps: how long they took, and their metrics, one step behind."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from basisnet_jax.loop.run_stats import RunStats
from basisnet_jax.training import finite


class StepClock:
    """Adds to a run's stats how long steps take, and how long they wait for batches.

    A step is timed from the end of the one before it, so the first step after a pause has no time.
    """

    def __init__(self, stats: RunStats) -> None:
        self._stats = stats
        self._last_end: float | None = None  # None: there was a pause, or no step yet

    def step_ended(self) -> None:
        """Counts the time since the last step's end as a step's."""
        now = time.monotonic()
        if self._last_end is not None:
            self._stats.step_seconds += now - self._last_end
            self._stats.timed_steps += 1
        self._last_end = now

    def pause(self) -> None:
        """Leaves out what comes before the next step's end, such as an evaluation."""
        self._last_end = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time in the context as waiting for a batch, if the step that waits is timed."""
        began = time.monotonic()
        yield
        if self._last_end is not None:
            self._stats.wait_seconds += time.monotonic() - began


class MetricsBehind:
    """The metrics of the newest step, read one step later: the device computes on while the host waits for them."""

    def __init__(self) -> None:
        self._newest: tuple[int, dict[str, Any]] | None = None

    def put(self, step: int, metrics: dict[str, Any]) -> None:
        """Keeps the metrics of a step that may not have ended."""
        self._newest = step, metrics

    def take(self) -> tuple[int, dict[str, float], str | None] | None:
        """Waits for the step to end; returns (its number, its metrics, the first failed check or None), once."""
        if self._newest is None:
            return None
        (step, metrics), self._newest = self._newest, None
        failed = finite.first_failed(metrics.pop("finite", {}))
        return step, {name: float(value) for name, value in metrics.items()}, failed
