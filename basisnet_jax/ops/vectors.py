"""Vectors that hold many small arrays: cut into the arrays and joined again, in few launches on a GPU."""

import itertools
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from basisnet_jax.ops.pallas_split_gpu import copy_parts

# Arrays concatenated at once. XLA fuses at most 96 operands into a launch, and some arrays are computed from three.
CHUNK = 32


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def cut(vector: jax.Array, shapes: tuple[tuple[int, ...], ...], pallas_kernels: bool = False) -> list[jax.Array]:
    """Cuts a vector into arrays of these shapes, raveled one after the other.

    Args:
      vector: as long as all arrays together.
      shapes: of the arrays.
      pallas_kernels: whether an NVIDIA GPU copies all arrays with several axes in one launch. Most are read by products
        and kernels, for each of which XLA would copy its array. Biases and scales are read where they are used.
    """
    sizes = [math.prod(shape) for shape in shapes]

    def slices(vector):
        return [part.reshape(shape) for part, shape in zip(lax.split(vector, sizes), shapes, strict=True)]

    def copies(vector):
        places = zip(itertools.accumulate(sizes, initial=0), sizes, strict=False)
        several_axes = [place for place, shape in zip(places, shapes, strict=True) if len(shape) > 1]
        copied = iter(copy_parts(vector, several_axes))
        return [next(copied).reshape(part.shape) if part.ndim > 1 else part for part in slices(vector)]

    if pallas_kernels and any(len(shape) > 1 for shape in shapes):
        return lax.platform_dependent(vector, default=slices, cuda=copies)
    return slices(vector)


def _cut_forward(vector, shapes, pallas_kernels):
    return cut(vector, shapes, pallas_kernels), None


def _cut_backward(shapes, pallas_kernels, _, arrays):
    return (joined(arrays),)


cut.defvjp(_cut_forward, _cut_backward)


def joined(arrays: Sequence[jax.Array]) -> jax.Array:
    """Joins arrays to a vector, in chunks that XLA leaves apart: it computes a chunk in one launch on a GPU."""
    raveled = [array.reshape(-1) for array in arrays]
    chunks = [jnp.concatenate(raveled[at : at + CHUNK]) for at in range(0, len(raveled), CHUNK)]
    return lax.optimization_barrier(jnp.concatenate(lax.optimization_barrier(chunks)))
