"""Parts of a vector, each copied to an array of its own, as one Pallas kernel for NVIDIA GPUs.

XLA needs a launch for each such copy, and makes one wherever a product or a kernel reads a part.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from basisnet_jax.ops.pallas_depthwise_gpu import call

BLOCK = 1024  # elements that a program copies


def copy_parts(vector: jax.Array, places: Sequence[tuple[int, int]]) -> list[jax.Array]:
    """Returns the parts of a vector at the places (start, size), one array each."""

    def body(vector_ref, *part_refs):
        first = pl.program_id(0) * BLOCK
        at = first + jnp.arange(BLOCK)
        block = triton.load(vector_ref.at[at], mask=at < vector.size, other=0)
        for (start, size), part_ref in zip(places, part_refs, strict=True):

            @pl.when((first < start + size) & (first + BLOCK > start))
            def _(start=start, size=size, part_ref=part_ref):
                triton.store(part_ref.at[at - start], block, mask=(at >= start) & (at < start + size))

    return call(
        "copy_parts",
        body,
        grid=(pl.cdiv(vector.size, BLOCK),),
        warps=4,
        shapes=[jax.ShapeDtypeStruct((size,), vector.dtype) for _, size in places],
    )(vector)
