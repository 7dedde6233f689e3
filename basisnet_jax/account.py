"""What a run knows of itself besides its state."""

import dataclasses


@dataclasses.dataclass
class Account:
    """Saved with the state, so that a resumed run says what it would have."""

    train_seconds: float = 0.0  # in the loop, compilation, evaluation and saving included
    step_seconds: float = 0.0  # in training steps alone, each run's first left out
    wait_seconds: float = 0.0  # of those, waiting for a batch
    timed_steps: int = 0
    skipped_steps: int = 0  # that changed nothing, as their loss or gradient was not finite
    skipped_in_a_row: int = 0  # of those, the newest
    recompilations: int = 0  # of the training or evaluation step, each process's first compilation left out
    summed_steps: int = 0  # steps in `sums`, which are those since the last line of training metrics
    sums: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, metrics: dict[str, float]) -> None:
        """The metrics of one step more. One that was skipped counts, but is not in the means."""
        if metrics["skipped"]:
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
            return
        self.skipped_in_a_row = 0
        self.summed_steps += 1
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in metrics.items()}

    def take_means(self) -> dict[str, float]:
        """The means since the last call, and how many steps were skipped and compiled again so far."""
        means = {f"train/{name}": total / self.summed_steps for name, total in self.sums.items() if name != "skipped"}
        self.summed_steps, self.sums = 0, {}
        return {
            **means,
            "train/skipped_steps": float(self.skipped_steps),
            "train/recompilations": float(self.recompilations),
        }
