"""Shared parts of the Pallas kernels: `on_each_device` for TPUs and GPUs, the rest for TPUs, with the batch in lanes.

On a TPU, XLA keeps these activations with the batch minor and the channels second. The same bytes are a row-major
[H, W, C, B], so the transposes around the kernels cost nothing. In that form eight channels of 128 images fill a vector
register, and so does one tap of those images' own kernels; a shift in H or W only changes an address.

Where a mesh is in the context (`mesh.with_mesh_in_context`), the batch is split over all of its devices, and each
device runs the kernel on its own images. Products are accumulated in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

LANES, SUBLANES = 128, 8
# Bytes of VMEM for two copies of a kernel's blocks and for its scratch. A kernel gets 16 MiB unless it asks for more.
VMEM = 12 * 2**20


def reason_unsupported(batch: int, dtype: jnp.dtype, *channels: int) -> str | None:
    """Returns why no kernel supports a layer of this batch, dtype and channels, or None if the kernels do."""
    devices = max(jax.sharding.get_abstract_mesh().size, 1)
    if batch % (devices * LANES):
        return f"{batch} images on {devices} device(s) do not fill the {LANES} lanes of each"
    if unaligned := [c for c in channels if c % SUBLANES]:
        return f"{unaligned[0]} channels are not a multiple of {SUBLANES}"
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"{dtype} is neither float32 nor bfloat16"
    return None


def on_each_device(run: Callable, *arrays_B: jax.Array | None):
    """Calls run(*arrays) on each device with the device's images; arrays and results have the batch first.

    An array with a leading axis of 1 is shared by all images, and each device gets the whole array.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run(*arrays_B)
    batch, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    specs = tuple(whole if array is None or array.shape[0] == 1 else batch for array in arrays_B)
    # JAX does not know over which mesh axes a kernel's output varies, so it cannot check that (vma).
    return jax.shard_map(run, in_specs=specs, out_specs=batch, check_vma=False)(*arrays_B)


def batch_last(x_Bx: jax.Array) -> jax.Array:
    """Returns [..., B] from [B, ...]: no copy where the batch is in the lanes."""
    return jnp.moveaxis(x_Bx, 0, -1)


def batch_first(x_xB: jax.Array) -> jax.Array:
    """Returns [B, ...] from [..., B]."""
    return jnp.moveaxis(x_xB, -1, 0)


def divisors(n: int) -> list[int]:
    """Returns the divisors of n, from the largest to 1."""
    return [d for d in range(n, 0, -1) if n % d == 0]


def call(name: str, body: Callable, *, grid, inputs, outputs, shapes, scratch) -> Callable:
    """Makes a Pallas kernel for a TPU; the last axis of its grid is processed in order, the other axes in any order.

    Args:
      name: of the kernel, in a profile.
      body: takes the references of inputs, outputs and scratch.
      grid: steps along each axis.
      inputs: pallas block specs.
      outputs: pallas block specs.
      shapes: shapes and dtypes of the results.
      scratch: shape of a float32 array in VMEM.
    """
    return pl.pallas_call(
        body,
        name=name,
        grid=grid,
        in_specs=inputs,
        out_specs=outputs,
        out_shape=shapes,
        scratch_shapes=[pltpu.VMEM(scratch, jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=(*[pltpu.PARALLEL] * (len(grid) - 1), pltpu.ARBITRARY)
        ),
    )
