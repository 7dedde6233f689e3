"""Optimizers, by name."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from basisnet_jax.errors import UserError
from basisnet_jax.host.mesh import SMALLEST_SHARDED
from basisnet_jax.ops import vectors
from basisnet_jax.training.joined import VECTOR, Joined, join


class Optimizer(NamedTuple):
    """A transformation of gradients that are joined as it needs them.

    Attributes:
      join: joins parameters for `init`; gradients are joined in the same way.
      init: (joined parameters) -> state.
      update: (gradients, state, parameters, *, learning_rate) -> (updates, state).
    """

    join: Callable[[Any], Joined]
    init: Callable[[Joined], optax.OptState]
    update: Callable[..., tuple[Joined, optax.OptState]]


def group_of(path: str, trained: str = "") -> str:
    """Returns the group of the parameter at a path.

    'decayed': kernels and bases; 'plain': biases, batch norm and task vectors, which do not decay; 'frozen': parameters
    that are not below the path `trained`. All are below ''.
    """
    if trained and not f"{path}/".startswith(f"{trained}/"):
        return "frozen"
    return "decayed" if path.rpartition("/")[2] in ("kernel", "bases") else "plain"


def decayed(params: Joined) -> Any:
    """Returns a tree of bool: True for the parameters that decay."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _group(path) == "decayed", params)


def _group(path: Sequence[Any]) -> str:
    """Returns the group of an array of a `Joined`."""
    return path[1].key  # after the field's name


def times_rate() -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by the keyword `learning_rate` of `update`: an input of the program, not a constant."""

    def update(updates: Any, state: Any, params: Any = None, *, learning_rate: Any, **_: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda leaf: learning_rate * leaf, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def scale_by_trust_ratio() -> optax.GradientTransformation:
    """Multiplies the update of each kernel by norm of the kernel / norm of the update, or by 1 if one is 0.

    Optax's own computes each norm twice, so that the ratio has a derivative at 0, and knows no vectors of kernels.
    """

    def ratio(param_norm: jax.Array, update_norm: jax.Array) -> jax.Array:
        return jnp.where((param_norm == 0) | (update_norm == 0), 1.0, param_norm / update_norm)

    def scaled(updates: Joined, params: Joined) -> Joined:
        groups, parts = dict(updates.groups), updates.layout.parts("decayed")
        for path, update in groups.get("decayed", {}).items():
            param = params.groups["decayed"][path]
            if path == VECTOR:
                factors_P = ratio(vectors.norms(param, parts), vectors.norms(update, parts))
                new = vectors.scaled(update, factors_P, parts)
            else:
                new = update * ratio(jnp.linalg.norm(param), jnp.linalg.norm(update))
            groups["decayed"] = {**groups["decayed"], path: new}
        return Joined(groups, updates.layout)

    return optax.stateless(scaled)


def _adamw(weight_decay: float, momentum: float, decay: float, epsilon: float) -> list[Any]:
    """Returns AdamW, which decays the weights decoupled from the gradient."""
    return [optax.adamw(1.0, momentum, decay, epsilon, weight_decay=weight_decay, mask=decayed), times_rate()]


def _lamb(weight_decay: float, momentum: float, decay: float, epsilon: float) -> list[Any]:
    """Returns LAMB (arXiv 1904.00962), which scales the update of each parameter that decays by the parameter's norm.

    The others are updated as by Adam, as in timm and in NVIDIA's implementation.
    """
    return [
        optax.scale_by_adam(momentum, decay, epsilon),
        optax.add_decayed_weights(weight_decay, mask=decayed),
        optax.masked(scale_by_trust_ratio(), True),  # masks nothing; checkpoints have its state
        optax.scale(-1.0),
        times_rate(),
    ]


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
    "adamw": _adamw,
    "lamb": _lamb,
    "rmsprop": _rmsprop,
    "sgd": _sgd,
}
# {name: groups of whose parameters the optimizer needs the norms}
IN_ROWS: dict[str, Sequence[str]] = {"lamb": ("decayed",)}
# {name: batch size / the batch size that the learning rate is for -> factor of the learning rate}
BATCH_SCALINGS: dict[str, Callable[[float], float]] = {"none": lambda _: 1.0, "linear": float, "sqrt": math.sqrt}


def make_optimizer(
    name: str,
    *,
    weight_decay: float,
    momentum: float,
    decay: float,
    epsilon: float,
    clip_norm: float,
    trained: str = "",
    largest_joined: int = SMALLEST_SHARDED - 1,
) -> Optimizer:
    """Returns one of OPTIMIZERS. Parameters that are not below the path `trained`, such as 'routing', do not change.

    `largest_joined` goes to `join`.

    Raises:
      UserError: on `init`, if there is no parameter below the path.
    """
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    chain: Any = optax.chain(clip, *OPTIMIZERS[name](weight_decay, momentum, decay, epsilon))

    def labels(params: Joined) -> Any:
        if not params.groups.keys() - {"frozen"}:
            parts = ", ".join(sorted(params.tree()))
            raise UserError(f"config.optimizer.trained = {trained!r} is not a part of this model; it has {parts}.")
        return jax.tree_util.tree_map_with_path(lambda path, _: _group(path) != "frozen", params)

    if trained:
        chain = optax.multi_transform({True: chain, False: optax.set_to_zero()}, labels)
    joined = functools.partial(
        join,
        group_of=functools.partial(group_of, trained=trained),
        apart=("frozen",),
        in_rows=IN_ROWS.get(name, ()),
        largest=largest_joined,
    )
    return Optimizer(joined, chain.init, chain.update)
