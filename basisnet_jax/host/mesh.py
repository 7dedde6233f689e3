"""The device mesh, and which part of each array a device holds.

A batch is split over all devices. Parameters are replicated over the axis 'data' and split over the axis 'fsdp',
which is one device unless the config says otherwise.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Options of XLA for the training step, by preset. 'gpu' has those of
# https://docs.jax.dev/en/latest/gpu_performance_tips.html and keeps XLA from merging the products that synthesize a
# block's kernels: it would cut the merged product into copies.
XLA_PRESETS: dict[str, dict[str, bool | int]] = {
    "default": {},
    "gpu": {
        "xla_gpu_triton_gemm_any": True,
        "xla_gpu_enable_latency_hiding_scheduler": True,
        "xla_gpu_dot_merger_threshold_mb": 0,
    },
}
# Smaller arrays are replicated: gathering them would cost more than holding them.
SMALLEST_SHARDED = 2**15


def num_slices(devices: Sequence[jax.Device]) -> int:
    """Returns the number of TPU slices, groups of devices with their own fast network; 1 where there are no slices."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def make_mesh(devices: Sequence[jax.Device], fsdp: int = 1) -> Mesh:
    """Makes the mesh of all hosts' devices, (devices / fsdp) x fsdp; 'fsdp' stays within a slice."""
    slices = num_slices(devices)
    shape = (len(devices) // slices // fsdp, fsdp)
    # Without split axes, 'fsdp' would have to be as long as some of the axes of a TPU's network.
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(shape, (slices, 1), devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    # Auto axes: Linen's Dropout fails on Explicit axes.
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its leading axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_sharding(mesh: Mesh, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    """Returns a parameter's sharding: split along the longest axis that 'fsdp' divides, or replicated."""
    fsdp = mesh.shape["fsdp"]
    axes = [axis for axis, size in enumerate(leaf.shape) if size % fsdp == 0]
    if fsdp == 1 or leaf.size < SMALLEST_SHARDED or not axes:
        return replicated(mesh)
    longest = max(axes, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))


def with_mesh_in_context(mesh: Mesh, function: Callable) -> Callable:
    """Returns `function`, traced with the mesh in the context: shard_map and Pallas calls read the mesh there."""

    @functools.wraps(function)
    def traced(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def to_global(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Makes the whole batch's arrays, sharded over all devices of all hosts, from this host's share of the batch."""
    sharding = batch_sharding(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}


def on_mesh(tree: Any, like: Any) -> Any:
    """Makes global arrays of a tree's NumPy arrays, which are the same on all hosts.

    Args:
      tree: arrays.
      like: a tree of the same structure, whose leaves have the shardings; where one is None, an array stays as it is.
    """

    def placed(leaf: Any, wanted: Any) -> Any:
        if not isinstance(leaf, np.ndarray) or wanted.sharding is None:
            return leaf
        return jax.make_array_from_callback(leaf.shape, wanted.sharding, leaf.__getitem__)

    return jax.tree.map(placed, tree, like)
