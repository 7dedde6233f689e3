"""Converts arrays between a publisher's file and the variables of a `Backbone`, in both directions."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from basisnet_jax.errors import UserError
from basisnet_jax.models.architectures import Architecture
from basisnet_jax.models.basisnet import Variables
from basisnet_jax.models.layers import Backbone
from basisnet_jax.models.routing import static_route
from basisnet_jax.weights.naming import NAMINGS, Naming

NUM_CLASSES = 1000  # of ImageNet


def from_publisher(arrays: dict[str, np.ndarray], table: Architecture, publisher: str, trouble: str) -> Variables:
    """Converts a file's arrays to a Backbone's variables.

    Args:
      arrays: by the publisher's names; the images have one channel or three.
      table: the Backbone's.
      publisher: a key of `NAMINGS`.
      trouble: begins the sentence of an error.

    Returns:
      {'params', 'batch_stats'}: float32 arrays of NumPy.

    Raises:
      UserError: the publisher has no such network, or an array does not fit.
    """
    naming = NAMINGS[publisher]
    names = naming.names(table)
    if not names:
        raise UserError(f"{trouble}, which {publisher} does not publish with the same layers; name another file.")
    bias, stem = arrays.get(names["classifier", "bias"]), arrays.get(names["stem", "kernel"])
    backbone = Backbone(table, bias.size if bias is not None and bias.ndim == 1 else NUM_CLASSES)
    inputs = 1 if naming.outputs_first else 2  # the axis
    gray = stem is not None and stem.ndim == 4 and stem.shape[inputs] == 1
    images = jnp.zeros((1, 32, 32, 1 if gray else 3))
    shapes = jax.eval_shape(lambda: backbone.init(jax.random.key(0), images, static_route, train=False))
    order = {name: position for position, name in enumerate(names)}

    flat, left = {}, dict(arrays)
    wanted = flatten_dict(shapes)
    for path in sorted(wanted, key=lambda path: order[_layer_and_leaf(path)]):
        layer, leaf = _layer_and_leaf(path)
        name, shape = names[layer, leaf], wanted[path].shape
        array = take(arrays, name, _file_shapes(shape, layer, naming), trouble)
        if naming.outputs_first and array.ndim > 1:
            array = np.moveaxis(array, (0, 1), (-1, -2))
        flat[path] = array.reshape(shape).astype(np.float32, copy=False)
        left.pop(name)
    for name, array in left.items():
        if not any(part in name for part in naming.ignored):
            raise UserError(
                f"{trouble}: its {name!r} of shape {array.shape} does not belong there; name the file's architecture."
            )
    return unflatten_dict(flat)


def to_publisher(variables: Variables, table: Architecture, publisher: str) -> dict[str, np.ndarray]:
    """Converts a Backbone's variables to arrays by a publisher's names, in its layout: undoes `from_publisher`."""
    naming = NAMINGS[publisher]
    names, arrays = naming.names(table), {}
    for path, leaf in flatten_dict(variables).items():
        layer, name = _layer_and_leaf(path)
        array, (shape, *_) = np.asarray(leaf), _file_shapes(leaf.shape, layer, naming)
        if naming.outputs_first and len(shape) > 1:
            outputs, inputs, *sides = shape
            array = np.moveaxis(array.reshape(*sides, inputs, outputs), (-1, -2), (0, 1))
        arrays[names[layer, name]] = np.ascontiguousarray(array.reshape(shape))
    return arrays


def _layer_and_leaf(path: tuple[str, ...]) -> tuple[str, str]:
    """Returns ('block03/expand_norm', 'mean') of ('batch_stats', 'block03', 'expand_norm', 'batch_norm', 'mean')."""
    *layer, leaf = (part for part in path[1:] if part != "batch_norm")
    return "/".join(layer), leaf


def _file_shapes(shape: tuple[int, ...], layer: str, naming: Naming) -> list[tuple[int, ...]]:
    """Returns the shapes that an array may have in the file, the likeliest first: 1x1 kernels may omit the 1x1."""
    outputs_first = naming.outputs_first
    match shape:
        case (inputs, outputs):
            pair = (outputs, inputs) if outputs_first else (inputs, outputs)
            whole = (*pair, 1, 1) if outputs_first else (1, 1, *pair)
            return [pair, whole] if layer in naming.matrices else [whole, pair]
        case (side, _, channels):
            return [(channels, 1, side, side) if outputs_first else (side, side, channels, 1)]
        case (side, _, inputs, outputs) if outputs_first:
            return [(outputs, inputs, side, side)]
    return [shape]


def take(arrays: Mapping[str, Any], name: str, shapes: Sequence[tuple[int, ...]], trouble: str) -> Any:
    """Returns the array of that name and one of those shapes. Raises UserError with the mismatch or a near name."""
    candidate = arrays.get(name)
    if candidate is not None and candidate.shape in shapes:
        return candidate
    if candidate is not None:
        raise UserError(f"{trouble}: {name!r} has shape {candidate.shape}, not {shapes[0]}.")
    others = [other for other, array in arrays.items() if array.shape in shapes] or list(arrays)
    nearest = difflib.get_close_matches(name, others, n=1, cutoff=0.0)
    hint = f"the nearest is {nearest[0]!r} of shape {arrays[nearest[0]].shape}" if nearest else "it is empty"
    raise UserError(f"{trouble}: {name!r} of shape {shapes[0]} is missing; {hint}.")
