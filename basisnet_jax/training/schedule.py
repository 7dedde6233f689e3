"""A run's schedules: the learning rate, how much of the warm start is left, and how fast averages forget.

Their numbers are an argument of the training step. If they were constants of the program, another learning rate or
number of epochs would compile it again.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class Schedule:
    """The numbers of a run's schedules, each a scalar of NumPy or JAX."""

    peak: Any  # float32, the learning rate at its peak
    warmup_steps: Any  # int32, steps of linear warm-up, less than total_steps
    total_steps: Any  # int32, steps of the run
    decay_rate: Any  # float32, exponential: factor of each stair
    decay_steps: Any  # int32, exponential: steps per stair
    warm_start_steps: Any  # int32, steps in which the coefficients go from uniform to the routing's own


def make_schedule(
    *,
    peak: float,
    warmup_steps: int = 0,
    total_steps: int,
    decay_rate: float = 1.0,
    decay_steps: int = 1,
    warm_start_steps: int = 0,
) -> Schedule:
    """Returns the schedule, its numbers in the types that the compiled program takes."""
    steps = (np.int32(warmup_steps), np.int32(total_steps))
    return Schedule(np.float32(peak), *steps, np.float32(decay_rate), np.int32(decay_steps), np.int32(warm_start_steps))


def cosine(schedule: Schedule, step: jax.Array) -> jax.Array:
    """Returns the learning rate: a linear warm-up from 0 to the peak, then half a cosine to 0 at `total_steps`."""
    share = (step - schedule.warmup_steps) / (schedule.total_steps - schedule.warmup_steps)
    return _warmed_up(schedule, step, schedule.peak * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(share, 0.0, 1.0))))


def exponential(schedule: Schedule, step: jax.Array) -> jax.Array:
    """Returns the learning rate: a linear warm-up from 0 to the peak, then stairs (MnasNet's).

    Each stair is `decay_rate` times the one before; the first stair begins at step 0, with the warm-up.
    """
    stair = jnp.asarray(step // schedule.decay_steps, jnp.float32)
    return _warmed_up(schedule, step, schedule.peak * schedule.decay_rate**stair)


def _warmed_up(schedule: Schedule, step: jax.Array, rate: jax.Array) -> jax.Array:
    share = step / jnp.maximum(schedule.warmup_steps, 1)
    return jnp.where(step < schedule.warmup_steps, schedule.peak * share, rate)


LEARNING_RATES = {"cosine": cosine, "exponential": exponential}


def warm_start(step: jax.Array | int, warm_start_steps: Any) -> jax.Array:
    """Returns how much of the warm start is left: 1 at step 0, linearly down to 0 at `warm_start_steps`, then 0."""
    return jnp.clip((warm_start_steps - step) / jnp.maximum(warm_start_steps, 1), 0.0, 1.0)


def decay_at(step: jax.Array | int, decay: float) -> jax.Array:
    """Returns the old average's share in a moving average at a step: at most `decay`, and less in early steps.

    At the first step the share is 0, so nothing of the initial value is left. Until `decay` is the smaller, an average
    covers the last tenth of the steps so far. TensorFlow's ExponentialMovingAverage has the same shares a step later.
    """
    return jnp.minimum(decay, step / (9.0 + step))
