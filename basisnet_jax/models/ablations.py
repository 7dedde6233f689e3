"""Ablations of a trained model's coefficients: the specialist gets all of them, or less, to see what they carry."""

import jax
import jax.numpy as jnp
import numpy as np


def random_cycle(count: int) -> np.ndarray:
    """Returns int64[count]: a fixed permutation of one cycle, so with two or more elements none keeps its place."""
    order = np.random.default_rng(0).permutation(count)
    cycle = np.empty(count, np.int64)
    cycle[order] = np.roll(order, 1)
    return cycle


def _uniform(coefficients_BxLxN: jax.Array) -> jax.Array:
    return jnp.full_like(coefficients_BxLxN, 1 / coefficients_BxLxN.shape[-1])


def _argmax(coefficients_BxLxN: jax.Array) -> jax.Array:
    return jax.nn.one_hot(jnp.argmax(coefficients_BxLxN, axis=-1), coefficients_BxLxN.shape[-1])


def _shuffle_layers(coefficients_BxLxN: jax.Array) -> jax.Array:
    return coefficients_BxLxN[:, random_cycle(coefficients_BxLxN.shape[1])]


# {name: coefficients_BxLxN -> coefficients_BxLxN}
ABLATIONS = {
    "predicted": lambda x: x,  # unchanged
    "uniform": _uniform,  # the same weight for every basis
    "argmax": _argmax,  # the strongest basis alone
    "shuffle_images": lambda x: x,  # unchanged here: the caller shows the preview another image
    "shuffle_layers": _shuffle_layers,  # each layer gets another layer's coefficients
}
