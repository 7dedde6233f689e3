"""Optimizers, by name."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import optax

from basisnet_jax.errors import UserError
from basisnet_jax.training.joined import Joined


def group_of(path: str) -> str:
    return "decayed" if path.rpartition("/")[2] in ("kernel", "bases") else "plain"


def decayed(params: Joined) -> Any:
    """Returns a tree of bool: True for kernels and bases, which decay; not biases, batch norm and task vectors."""
    groups = {group: dict.fromkeys(arrays, group == "decayed") for group, arrays in params.groups.items()}
    return params.replace(groups=groups)


def times_rate() -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by the keyword `learning_rate` of `update`: an input of the program, not a constant."""

    def update(updates: Any, state: Any, params: Any = None, *, learning_rate: Any, **_: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda leaf: learning_rate * leaf, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _adaptive(
    make: Callable[..., Any], weight_decay: float, momentum: float, decay: float, epsilon: float
) -> list[Any]:
    """Returns AdamW or LAMB: both decay the weights decoupled from the gradient."""
    return [make(1.0, momentum, decay, epsilon, weight_decay=weight_decay, mask=decayed), times_rate()]


def _rmsprop(weight_decay: float, momentum: float, decay: float, epsilon: float) -> list[Any]:
    """Returns TensorFlow's RMSProp, as in MnasNet, with L2; momentum is applied after the learning rate."""
    scaled = optax.rmsprop(1.0, decay, epsilon, initial_scale=1.0, eps_in_sqrt=True)
    return [optax.add_decayed_weights(weight_decay, mask=decayed), scaled, times_rate(), optax.trace(momentum)]


def _sgd(weight_decay: float, momentum: float, decay: float, epsilon: float) -> list[Any]:
    """Returns SGD with Nesterov's momentum and L2."""
    del decay, epsilon
    descent = optax.sgd(1.0, momentum, nesterov=True)
    return [optax.add_decayed_weights(weight_decay, mask=decayed), descent, times_rate()]


# {name: (weight decay, momentum, decay, epsilon) -> transformations}: Optax's optimizers at rate 1, then `times_rate`
OPTIMIZERS: dict[str, Callable[[float, float, float, float], list[Any]]] = {
    "adamw": functools.partial(_adaptive, optax.adamw),
    "lamb": functools.partial(_adaptive, optax.lamb),
    "rmsprop": _rmsprop,
    "sgd": _sgd,
}
# {name: batch size / the batch size that the learning rate is for -> factor of the learning rate}
BATCH_SCALINGS: dict[str, Callable[[float], float]] = {"none": lambda _: 1.0, "linear": float, "sqrt": math.sqrt}


def make_optimizer(
    name: str, *, weight_decay: float, momentum: float, decay: float, epsilon: float, clip_norm: float
) -> optax.GradientTransformationExtraArgs:
    """Returns one of OPTIMIZERS; its `update` requires the keyword `learning_rate`."""
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clip, *OPTIMIZERS[name](weight_decay, momentum, decay, epsilon))


def train_only(optimizer: optax.GradientTransformationExtraArgs, below: str) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer for the parameters below a path, such as 'routing'; the others do not change.

    The path '' means all parameters.

    Raises:
      UserError: on `init`, if there is no parameter below the path.
    """

    def is_trained(path: tuple[Any, ...]) -> bool:
        return f"{jax.tree_util.keystr(path, simple=True, separator='/')}/".startswith(f"{below}/")

    def labels(params: Any) -> Any:
        labelled = jax.tree_util.tree_map_with_path(lambda path, _: is_trained(path), params)
        if not any(jax.tree.leaves(labelled)):
            parts = ", ".join(sorted(params))
            raise UserError(f"config.optimizer.trained = {below!r} is not a part of this model; it has {parts}.")
        return labelled

    return optax.multi_transform({True: optimizer, False: optax.set_to_zero()}, labels) if below else optimizer
