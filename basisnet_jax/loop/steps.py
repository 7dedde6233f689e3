"""Bookkeeping for the newest steps: how long they took, and their metrics, read one step behind."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from basisnet_jax.loop.run_stats import RunStats
from basisnet_jax.training import finite


class StepClock:
    """A clock that adds to a run's stats how long steps take and how long they wait for batches.

    A step is timed from the end of the step before, so the first step after a pause is not timed.
    """

    def __init__(self, stats: RunStats) -> None:
        self._stats = stats
        self._last_end: float | None = None  # end of the last step; None after a pause and before the first step

    def step_ended(self) -> None:
        """Counts the time since the last step's end as the time of a step."""
        now = time.monotonic()
        if self._last_end is not None:
            self._stats.step_seconds += now - self._last_end
            self._stats.timed_steps += 1
        self._last_end = now

    def pause(self) -> None:
        """Leaves the next step untimed, because an evaluation, for example, comes before its end."""
        self._last_end = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time in the context as waiting for a batch, if the step that waits is timed."""
        began = time.monotonic()
        yield
        if self._last_end is not None:
            self._stats.wait_seconds += time.monotonic() - began


class MetricsBehind:
    """Metrics of the newest step, read one step later: the device computes the next step while the host waits."""

    def __init__(self) -> None:
        self._newest: tuple[int, dict[str, Any]] | None = None

    def put(self, step: int, metrics: dict[str, Any]) -> None:
        """Keeps the metrics of a step that may still be running."""
        self._newest = step, metrics

    def take(self) -> tuple[int, dict[str, float], str | None] | None:
        """Waits for the step, and returns once: (its number, its metrics, the first failed check or None)."""
        if self._newest is None:
            return None
        (step, metrics), self._newest = self._newest, None
        failed = finite.first_failed(metrics.pop("finite", {}))
        return step, {name: float(value) for name, value in metrics.items()}, failed
