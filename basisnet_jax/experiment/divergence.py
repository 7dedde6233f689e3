"""What is said of a run whose numbers are no longer finite."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from basisnet_jax.experiment.run import Experiment
from basisnet_jax.training import finite
from basisnet_jax.training.state import TrainState


def numbers(metrics: dict[str, float]) -> str:
    """What a step's metrics say of it, as 'loss nan, gradient norm nan, learning rate 0.1'."""
    shown = ("loss", "gradient_norm", "learning_rate")
    return ", ".join(f"{name.replace('_', ' ')} {metrics[name]:.4g}" for name in shown)


def find_culprit(experiment: Experiment, state: TrainState, step: int, teacher: Any) -> str:
    """Where the numbers of a step that was skipped began not to be finite: it is done again, every layer checked.

    Args:
      experiment: of the run.
      state: after the step and before any other, so but for its count what it was before; its memory is taken over.
      step: counted from 1.
      teacher: its variables.
    """
    before = dataclasses.replace(state, step=jnp.full_like(state.step, step - 1))
    batch = next(experiment.train_batches(step - 1))
    _, metrics = experiment.train_step(debug=True)(before, batch, experiment.schedule, teacher)
    return finite.first_failed(metrics["finite"]) or "no single layer"


def sentence(step: int, metrics: dict[str, float], skipped: int, culprit: str) -> str:
    """Why the run stops at a step: its metrics, how many in a row were skipped, and where it began."""
    row = f", the last of {skipped} in a row that were skipped," if skipped > 1 else ""
    return (
        f"step {step}{row} has numbers that are not finite ({numbers(metrics)}), the first of them in {culprit}; "
        "lower config.optimizer.learning_rate or set config.optimizer.clip_norm; checkpoints from before are kept."
    )
