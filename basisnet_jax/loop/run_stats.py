"""Statistics of a run besides its state: counts, times, and the metrics since they were last written."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass
class RunStats:
    """Counts and times, saved with the state: a resumed run reports what an uninterrupted run would have."""

    train_seconds: float = 0.0  # time in the loop, compilation, evaluation and saving included
    step_seconds: float = 0.0  # time in training steps alone, each process's first step left out
    wait_seconds: float = 0.0  # part of `step_seconds` spent waiting for a batch
    timed_steps: int = 0  # steps in `step_seconds`
    skipped_steps: int = 0  # steps that changed nothing, as their loss or gradient was not finite
    skipped_in_a_row: int = 0  # newest steps that were all skipped
    recompilations: int = 0  # of the training or evaluation step, each process's first compilation left out
    summed_steps: int = 0  # steps in `sums`
    sums: dict[str, float] = dataclasses.field(default_factory=dict)  # metrics since they were last written

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> "RunStats":
        """Returns the saved statistics; unknown fields are ignored, and missing fields have their defaults."""
        return cls(**{field.name: saved[field.name] for field in dataclasses.fields(cls) if field.name in saved})

    def add(self, metrics: dict[str, float]) -> None:
        """Adds the metrics of one step. A skipped step is counted but left out of the means."""
        if metrics["skipped"]:
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
            return
        self.skipped_in_a_row = 0
        self.summed_steps += 1
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in metrics.items()}

    def take_means(self) -> dict[str, float]:
        """Returns the means since the last call, and the numbers of skipped steps and recompilations so far."""
        means = {f"train/{name}": total / self.summed_steps for name, total in self.sums.items() if name != "skipped"}
        self.summed_steps, self.sums = 0, {}
        return {
            **means,
            "run/skipped_steps": float(self.skipped_steps),
            "run/recompilations": float(self.recompilations),
        }

    def speed_since(self, before: "RunStats", batch_size: int) -> dict[str, float]:
        """Returns images/s and the share of time waiting for data since `before`; empty where no step was timed."""
        seconds, steps = self.step_seconds - before.step_seconds, self.timed_steps - before.timed_steps
        if not steps or not seconds:
            return {}
        return {
            "run/images_per_second": steps * batch_size / seconds,
            "run/input_wait_share": (self.wait_seconds - before.wait_seconds) / seconds,
        }
