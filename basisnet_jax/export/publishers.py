"""Weights files of a static network by the names of torchvision's or timm's network of the same layers."""

import dataclasses
import json
from collections.abc import Mapping

import safetensors.numpy

from basisnet_jax.errors import UserError
from basisnet_jax.export.folded import Network
from basisnet_jax.models.architectures import Architecture, Conventions
from basisnet_jax.serving.formats import FORMATS
from basisnet_jax.weights.conversion import from_publisher, to_publisher
from basisnet_jax.weights.naming import NETWORKS, network_of


def to_file(network: Network, name: str) -> bytes:
    """Returns the content of `specialist.timm.safetensors` or of `specialist.torchvision.safetensors`.

    Args:
      network: the network to export.
      name: the format's name.

    Raises:
      UserError: the network is not static, or the publisher has no network of the same layers.
    """
    publisher, specialist = FORMATS[name].publisher, network.model.specialist
    if network.model.preview or network.model.routing:
        raise UserError(
            f"config.export.formats has {name!r}, but {publisher} has no network whose kernels depend on the image; "
            f"freeze the specialist with --specialize, or leave {name!r} out."
        )
    table = specialist.architecture
    theirs = network_of(table, publisher)
    if theirs is None or (publisher == "torchvision" and network.channels != 3):
        conventions = table.conventions
        raise UserError(
            f"config.export.formats has {name!r}, but {publisher} has no network like this one ({conventions.padding} "
            f"padding, batch norm's epsilon {conventions.epsilon:g}, {network.channels} channels); leave {name!r} out, "
            f"or train one of {', '.join(NETWORKS[publisher])} with "
            f"--config.model.specialist.conventions={publisher}."
        )
    variables = {collection: tree["specialist"] for collection, tree in network.variables.items()}
    facts = {
        "format": "pt",  # how readers of PyTorch's arrays know theirs
        "architecture": theirs,
        "num_classes": str(specialist.num_classes),
        "in_chans": str(network.channels),
        **{key: json.dumps(value) for key, value in normalization(table.conventions).items()},
    }
    return safetensors.numpy.save(to_publisher(variables, table, publisher), facts)


def normalization(conventions: Conventions) -> dict[str, list[float]]:
    """Returns {'mean', 'std'} of images in [0, 1], as torchvision and timm normalize them before the network."""
    mean, std = conventions.input_mean, conventions.input_std
    return {"mean": [round((x + 1) / 2, 9) for x in mean], "std": [round(x / 2, 9) for x in std]}


def usage(table: Architecture, name: str, num_classes: int, channels: int) -> list[str]:
    """Returns the lines of Python that open the file with its publisher's library.

    Args:
      table: the network's, for which the publisher has a network.
      name: the format's name.
      num_classes: number of the network's classes.
      channels: of the images.
    """
    file, theirs = FORMATS[name].file("specialist", name), network_of(table, FORMATS[name].publisher)
    opened = {
        "timm": [
            "import timm",
            "",
            f'model = timm.create_model("{theirs}", num_classes={num_classes}, in_chans={channels},',
            f'                          checkpoint_path="{file}").eval()',
        ],
        "torchvision": [
            "import safetensors.torch, torchvision",
            "",
            f"model = torchvision.models.{theirs}(num_classes={num_classes}).eval()",
            f'model.load_state_dict(safetensors.torch.load_file("{file}"))',
        ],
    }
    mean, std = normalization(table.conventions).values()
    call = f"logits = model((pixels / 255 - mean) / std)  # [B, {channels}, H, W]; mean {mean}, std {std}"
    return [*opened[FORMATS[name].publisher], call]


def from_files(network: Network, files: Mapping[str, bytes], name: str) -> Network:
    """Returns the network with the weights of its file of that format, read as anybody's file is."""
    table, publisher = network.model.specialist.architecture, FORMATS[name].publisher
    file = FORMATS[name].file("specialist", name)
    read = from_publisher(safetensors.numpy.load(files[file]), table, publisher, f"{file} does not hold the network")
    variables = {collection: {"specialist": tree} for collection, tree in read.items()}
    return dataclasses.replace(network, variables=variables)
