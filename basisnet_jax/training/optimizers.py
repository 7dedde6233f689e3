"""Optimizers, by name."""

from typing import Any

import jax
import optax

from basisnet_jax.errors import UserError


def decayed(params: Any) -> Any:
    """Returns which parameters decay: kernels and bases do; biases, batch norm and a task's vectors do not."""

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        return jax.tree_util.keystr(path[-1:], simple=True) in ("kernel", "bases")

    return jax.tree_util.tree_map_with_path(decays, params)


def times_rate() -> optax.GradientTransformationExtraArgs:
    """Multiplies the updates by the `learning_rate` that `update` is given: an input of the program, not a constant."""

    def update(updates: Any, state: Any, params: Any = None, *, learning_rate: Any, **_: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda leaf: learning_rate * leaf, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def make_optimizer(
    name: str, *, weight_decay: float, momentum: float, decay: float, epsilon: float, clip_norm: float
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer by name; its `update` wants the keyword `learning_rate`.

    'adamw', 'lamb', with decoupled decay; 'rmsprop' (TensorFlow's, as MnasNet has it), 'sgd' (Nesterov), with L2.
    """
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    # Optax's own optimizers at rate 1, times the rate; rmsprop's momentum comes after the rate.
    if name in ("adamw", "lamb"):
        adaptive = {"adamw": optax.adamw, "lamb": optax.lamb}[name]
        scaled = adaptive(1.0, momentum, decay, epsilon, weight_decay=weight_decay, mask=decayed)
        return optax.chain(clip, scaled, times_rate())
    l2 = optax.add_decayed_weights(weight_decay, mask=decayed)
    if name == "rmsprop":
        scaled = optax.rmsprop(1.0, decay, epsilon, initial_scale=1.0, eps_in_sqrt=True)
        return optax.chain(clip, l2, scaled, times_rate(), optax.trace(momentum))
    return optax.chain(clip, l2, optax.sgd(1.0, momentum, nesterov=True), times_rate())


def restrict(optimizer: optax.GradientTransformationExtraArgs, below: str) -> optax.GradientTransformationExtraArgs:
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
