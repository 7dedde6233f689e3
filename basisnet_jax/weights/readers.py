"""Reads weights files of other libraries as arrays by name; nothing in a file is run, and sizes are bounded.

`.pth` is PyTorch's (`torch_file.py`), `.safetensors` Hugging Face's, `.h5` Keras's: the `.weights.h5` of Keras 3, and
the older layout, in which keras.applications publishes its weights.
"""

import collections
import math
import os
import pathlib
from collections.abc import Callable, Iterator

import h5py
import numpy as np
import safetensors.numpy

from basisnet_jax.errors import UserError
from basisnet_jax.host.command_line import first_line
from basisnet_jax.weights.torch_file import MAX_BYTES, read_state_dict

_MAX_MEMBERS = 10_000  # in a group of an .h5 file: thirty times the layers of the largest network here


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads {name: array} from a weights file, whose suffix is a key of `READERS`.

    Args:
      path: path of the file.

    Returns:
      Arrays in the layout and dtype of the file. Keras's arrays are called 'layers/<layer>/vars/<number>', where the
      layers of a class are numbered in the order they run ('conv2d', 'conv2d_1', ...): Keras 3's own names.

    Raises:
      UserError: the file does not exist, is too large, cut off or damaged, or is not what its name says.
    """
    path = pathlib.Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path} has {size} bytes, more than the {MAX_BYTES} that a weights file may have.")
        return READERS[path.suffix](path)
    except UserError:
        raise
    except OSError as error:
        # h5py raises OSError without an errno for a file that is not HDF5.
        raise UserError(f"{path} cannot be read ({error.strerror or first_line(error)}); get it again.") from error
    except Exception as error:  # the libraries raise errors of all kinds for a file that is not what its name says
        raise UserError(
            f"{path} is cut off, damaged or not what its name says ({first_line(error)}); get it again."
        ) from error


def is_weights_file(source: str) -> bool:
    """Returns whether a name is that of a weights file, rather than of a run's folder."""
    return pathlib.PurePath(source).suffix in READERS


def _read_keras(path: pathlib.Path) -> dict[str, np.ndarray]:
    with h5py.File(path, "r") as file:
        datasets = dict(_keras_2(file) if "layer_names" in file.attrs else _keras_3(file))
        if not datasets:
            raise ValueError("it has no layers with weights")
        if sum(math.prod(x.shape) * x.dtype.itemsize for x in datasets.values()) > MAX_BYTES:
            raise ValueError("its arrays claim to be larger than a weights file may be")
        return {name: dataset[()] for name, dataset in datasets.items()}


def _keras_3(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    for layer in _members(_group(file, "layers")):
        where = _group(_group(file, "layers"), layer)
        for number in _members(_group(where, "vars")) if "vars" in where else ():
            yield f"layers/{layer}/vars/{number}", _dataset(_group(where, "vars"), number)


def _keras_2(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yields arrays under Keras 3's names: a layer's first weight tells its class, the layers' order its number."""
    counts: collections.Counter[str] = collections.Counter()
    for layer in _strings(file.attrs["layer_names"]):
        group = _group(file, layer)
        datasets = [_dataset(group, name) for name in _strings(group.attrs["weight_names"])]
        if not datasets:
            continue
        first = datasets[0].name.split("/")[-1].removesuffix(":0")
        kernel = "dense" if datasets[0].ndim == 2 else "conv2d"
        kinds = {"gamma": "batch_normalization", "depthwise_kernel": "depthwise_conv2d", "mean": "normalization"}
        kind = kinds.get(first, kernel)
        for number, dataset in enumerate(datasets):
            yield f"layers/{kind}{f'_{counts[kind]}' if counts[kind] else ''}/vars/{number}", dataset
        counts[kind] += 1


def _strings(attribute: np.ndarray) -> list[str]:
    return [x.decode() if isinstance(x, bytes) else str(x) for x in np.asarray(attribute).ravel().tolist()]


def _members(group: h5py.Group) -> list[str]:
    if len(group) > _MAX_MEMBERS:
        raise ValueError(f"{group.name} has {len(group)} members")
    return list(group)


def _group(parent: h5py.Group, name: str) -> h5py.Group:
    return _child(parent, name, h5py.Group)


def _dataset(parent: h5py.Group, name: str) -> h5py.Dataset:
    """Returns a dataset of numbers that are stored in this very file."""
    dataset = _child(parent, name, h5py.Dataset)
    if dataset.external or dataset.is_virtual or dataset.dtype.kind not in "fiu":
        raise ValueError(f"{dataset.name} does not hold its own numbers")
    return dataset


def _child(parent: h5py.Group, name: str, kind: type) -> h5py.Group | h5py.Dataset:
    # Each step is checked, because a link may lead into another file.
    for part in name.split("/"):
        if not isinstance(parent.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{part!r} is not in {parent.name}")
        parent = parent[part]
    if not isinstance(parent, kind):
        raise ValueError(f"{parent.name} is not a {kind.__name__.lower()}")
    return parent


READERS: dict[str, Callable[[pathlib.Path], dict[str, np.ndarray]]] = {
    ".pth": read_state_dict,
    ".safetensors": safetensors.numpy.load_file,
    ".h5": _read_keras,
}
