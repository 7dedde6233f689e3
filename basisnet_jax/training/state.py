"""Everything that training changes, as one typed dataclass."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from basisnet_jax.host.mesh import parameter_sharding, replicated
from basisnet_jax.models.basisnet import BasisNet, Variables
from basisnet_jax.training.joined import VECTOR, Joined, join, whole
from basisnet_jax.training.optimizers import Optimizer


@struct.dataclass
class TrainState:
    """The state of a run after `step` updates. The random key follows from seed and step, so it is not stored."""

    step: jax.Array  # int32 scalar: updates done
    params: Joined
    batch_stats: Joined
    ema_params: Joined
    ema_batch_stats: Joined
    opt_state: optax.OptState

    def variables(self, *, ema: bool) -> Variables:
        """Returns the model's variables: the moving averages, or the newest ones. `Joined.tree` says where they are."""
        if ema:
            return whole({"params": self.ema_params, "batch_stats": self.ema_batch_stats})
        return whole({"params": self.params, "batch_stats": self.batch_stats})


def init_state(
    model: BasisNet,
    optimizer: Optimizer,
    image_shape: tuple[int, int, int],
    seed: int,
    start: Callable[[Any], Any] = lambda variables: variables,
) -> TrainState:
    """Returns the state before the first step; pure, so it can be traced for shapes and jitted with shardings.

    `start` may replace drawn weights by trained ones.
    """
    images_1xHxWxC = jnp.zeros((1, *image_shape))
    variables = start(model.init(jax.random.key(seed), images_1xHxWxC, train=False))
    params, batch_stats = optimizer.join(variables["params"]), join(variables["batch_stats"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        ema_params=jax.tree.map(jnp.copy, params),
        ema_batch_stats=jax.tree.map(jnp.copy, batch_stats),
        opt_state=optimizer.init(params),
    )


def abstract_state(
    mesh: jax.sharding.Mesh,
    model: BasisNet,
    optimizer: Optimizer,
    image_shape: tuple[int, int, int],
) -> TrainState:
    """Returns the shapes, dtypes and shardings of the state without making an array."""
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, image_shape, 0))

    def placed(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        small = getattr(path[-1], "key", None) == VECTOR
        sharding = replicated(mesh) if small else parameter_sharding(mesh, leaf)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(placed, shapes)
