"""Vectors that hold many arrays: cut into the arrays, joined again, and scaled array by array.

A part is an array's place in the vector: (shape, numbers that it takes), with zeros behind the array's own. All three
need few launches on a GPU, however many arrays there are.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from basisnet_jax.ops.pallas_split_gpu import copy_parts

# Arrays concatenated at once. XLA fuses at most 96 operands into a launch, and some arrays are computed from three.
CHUNK = 32
# Numbers of a row. A part whose norm is needed has rows of its own.
ROW = 256

Part = tuple[tuple[int, ...], int]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def cut(vector: jax.Array, parts: tuple[Part, ...], pallas_kernels: bool = False) -> list[jax.Array]:
    """Cuts a vector into arrays, one of each part.

    Args:
      vector: as long as all parts together.
      parts: (shape, numbers) of each array.
      pallas_kernels: whether an NVIDIA GPU copies all arrays in one launch. Most are read by products and kernels, for
        each of which XLA would copy its array.
    """
    starts = list(itertools.accumulate((room for _, room in parts), initial=0))
    places = [(start, math.prod(shape)) for start, (shape, _) in zip(starts, parts, strict=False)]

    def slices(vector):
        return [
            lax.slice(vector, (start,), (start + size,)).reshape(shape)
            for (start, size), (shape, _) in zip(places, parts, strict=True)
        ]

    def copies(vector):
        return [copy.reshape(shape) for copy, (shape, _) in zip(copy_parts(vector, places), parts, strict=True)]

    if pallas_kernels:
        return lax.platform_dependent(vector, default=slices, cuda=copies)
    return slices(vector)


def _cut_forward(vector, parts, pallas_kernels):
    return cut(vector, parts, pallas_kernels), None


def _cut_backward(parts, pallas_kernels, _, arrays):
    return (joined(arrays, parts),)


cut.defvjp(_cut_forward, _cut_backward)


def joined(arrays: Sequence[jax.Array], parts: tuple[Part, ...]) -> jax.Array:
    """Joins arrays to a vector, in chunks that XLA leaves apart: it computes a chunk in one launch on a GPU."""
    raveled = [
        jnp.pad(array.reshape(-1), (0, room - array.size)) for array, (_, room) in zip(arrays, parts, strict=True)
    ]
    chunks = [jnp.concatenate(raveled[at : at + CHUNK]) for at in range(0, len(raveled), CHUNK)]
    return lax.optimization_barrier(jnp.concatenate(lax.optimization_barrier(chunks)))


def norms(vector: jax.Array, parts: tuple[Part, ...]) -> jax.Array:
    """Returns the Euclidean norm of each part, [parts], of a vector whose parts are whole rows."""
    rows_R = jnp.sum(jnp.square(vector.reshape(-1, ROW)), 1)
    # A sum by owner: a scatter would add in any order.
    is_owner_RxP = _owners(parts)[:, None] == np.arange(len(parts))
    return jnp.sqrt(jnp.sum(jnp.where(is_owner_RxP, rows_R[:, None], 0.0), 0))


def scaled(vector: jax.Array, factors_P: jax.Array, parts: tuple[Part, ...]) -> jax.Array:
    """Multiplies each part, of whole rows, by its factor."""
    return (vector.reshape(-1, ROW) * factors_P[_owners(parts)][:, None]).reshape(-1)


def _owners(parts: tuple[Part, ...]) -> np.ndarray:
    """Returns the part that each row belongs to, int32[rows]."""
    return np.repeat(np.arange(len(parts), dtype=np.int32), [room // ROW for _, room in parts])
