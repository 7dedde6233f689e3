"""What is said of a run whose numbers are no longer finite."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from basisnet_jax.experiment.run import Experiment
from basisnet_jax.training import finite
from basisnet_jax.training.state import TrainState


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
