"""Learning-rate schedules and optimizers, by name."""

from typing import Any

import jax
import optax

from basisnet_jax.errors import UserError


def make_schedule(
    name: str, *, peak: float, warmup_steps: int, total_steps: int, decay_rate: float, decay_steps: int
) -> optax.Schedule:
    """Step -> learning rate: a linear warm-up from 0 to `peak`, then one of.

    'cosine': half a cosine to 0 at `total_steps`;
    'exponential': `peak` times `decay_rate` for each `decay_steps` gone since step 0, in stairs (MnasNet's).
    """
    if name == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0 if warmup_steps else peak, peak, warmup_steps, total_steps)
    decay = optax.exponential_decay(peak, decay_steps, decay_rate, staircase=True)
    warmup = optax.linear_schedule(0.0, peak, max(warmup_steps, 1))
    return lambda step: jax.lax.select(step < warmup_steps, warmup(step), decay(step)) if warmup_steps else decay(step)


def decayed(params: Any) -> Any:
    """True for kernels and bases, False for biases and batch norm, which have one axis."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    weight_decay: float,
    momentum: float,
    decay: float,
    epsilon: float,
    clip_norm: float,
) -> optax.GradientTransformation:
    """'adamw', 'lamb', with decoupled decay; 'rmsprop' (TensorFlow's, as MnasNet has it), 'sgd' (Nesterov), with L2."""
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    if name in ("adamw", "lamb"):
        adaptive = {"adamw": optax.adamw, "lamb": optax.lamb}[name]
        return optax.chain(clip, adaptive(schedule, momentum, decay, epsilon, weight_decay=weight_decay, mask=decayed))
    l2 = optax.add_decayed_weights(weight_decay, mask=decayed)
    if name == "rmsprop":
        rmsprop = optax.rmsprop(schedule, decay, epsilon, initial_scale=1.0, eps_in_sqrt=True, momentum=momentum)
        return optax.chain(clip, l2, rmsprop)
    return optax.chain(clip, l2, optax.sgd(schedule, momentum, nesterov=True))


def restrict(optimizer: optax.GradientTransformation, below: str) -> optax.GradientTransformation:
    """The optimizer for the parameters below a path, such as 'routing'; the others do not change. '' is all.

    Raises:
      UserError: on `init`, no parameter is there.
    """

    def is_trained(path: tuple[Any, ...]) -> bool:
        return f"{jax.tree_util.keystr(path, simple=True, separator='/')}/".startswith(f"{below}/")

    def labels(params: Any) -> Any:
        labelled = jax.tree_util.tree_map_with_path(lambda path, _: is_trained(path), params)
        if not any(jax.tree.leaves(labelled)):
            parts = ", ".join(sorted(params))
            raise UserError(f"config.optimizer.trained = {below!r} is no part of this model, {parts}.")
        return labelled

    return optax.multi_transform({True: optimizer, False: optax.set_to_zero()}, labels) if below else optimizer
