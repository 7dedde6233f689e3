"""Reads a PyTorch weights file into NumPy arrays, without PyTorch and without running anything in the file.

A .pth file is a pickle, and a pickle may call any function of any module. The unpickler here knows an ordered
dictionary, the rebuilding of a tensor and the names of number types; everything else is refused. The pickle only
describes the tensors; their numbers are read afterwards, after every size has been compared with the file's. Both of
PyTorch's layouts are read: a zip (1.6 and newer), and a stream of pickles followed by the numbers (before 1.6).
"""

import collections
import datetime
import hashlib
import math
import os
import pathlib
import pickle
import pickletools
import re
import struct
import zipfile
from typing import IO, Any, NamedTuple

import numpy as np

from basisnet_jax.errors import UserError

MAX_BYTES = 2**30  # in a file: fifty times the largest network here

_DATES = ("%Y%m%d", "%d%m%Y", "%m%d%Y")
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}


class _Storage(NamedTuple):
    """A run of numbers in the file, under a key."""

    key: str
    dtype: str
    length: int


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads {name: array}, in the file's order, from what `torch.save(model.state_dict(), path)` wrote.

    Args:
      path: path of the file. If its name ends in a hash, as torch.hub's do ('mobilenet_v2-b0353104.pth'), the file's
        SHA-256 must begin with that hash; an ending that may be a date or a count need not be a hash.

    Returns:
      Arrays in the layout and dtype of the file.

    Raises:
      UserError: the file does not exist, is too large, cut off or damaged, has another hash, or holds anything but a
        dictionary of dense tensors.
    """
    path = pathlib.Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path} has {size} bytes, more than the {MAX_BYTES} that a weights file may have.")
        _check_hash(path)
        with path.open("rb") as file:
            tensors, contents = (_read_zip if zipfile.is_zipfile(file) else _read_stream)(file, size)
        return {name: _array(tensor, contents[tensor.storage.key]) for name, tensor in tensors.items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the path of a .pth file.") from error
    except _RefusedError as error:
        raise UserError(f"{path} asks for {error}, which is not part of a state_dict, and was not run.") from error
    except UserError:
        raise
    except Exception as error:  # zipfile and pickle raise errors of all kinds for a file that is not what its name says
        raise UserError(f"{path} is cut off, damaged or not a PyTorch state_dict ({error}); get it again.") from error


class _RefusedError(Exception):
    """A request of the pickle that is not allowed."""


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows three things; a pickle can change none of them for the pickles read after it."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a pickle's `module.name` stands for here."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild_tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise _RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage that a tensor refers to."""
        kind, dtype, key, _, length, *rest = pid
        if kind != "storage" or dtype not in _DTYPES.values() or any(x is not None for x in rest):
            raise ValueError(f"{pid} is not a storage")
        return _Storage(str(key), dtype, int(length))

    def _rebuild_tensor(self, storage, offset, shape, strides, *_: Any) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without a storage")
        return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _unpickle(file: IO[bytes], size: int) -> Any:
    """Reads the next pickle of a file of `size` bytes, and leaves the file's position after it."""
    start = file.tell()
    for opcode, argument, _ in pickletools.genops(file):
        # An unpickler's memory has as many entries as the largest number in a PUT opcode.
        if "PUT" in opcode.name and int(argument or 0) > size:
            raise ValueError(f"its memory would have {argument} entries")
    file.seek(start)
    return _Unpickler(file).load()


def _check_hash(path: pathlib.Path) -> None:
    named = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    if named:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(named[1]) and _is_plainly_a_hash(named[1]):
            raise UserError(f"{path} has SHA-256 {digest[: len(named[1])]}..., not the one in its name; get it again.")


def _is_plainly_a_hash(ending: str) -> bool:
    """Returns whether an ending of 8 to 64 hexadecimal digits is a hash, rather than chosen by a person.

    An ending with a letter is a hash. One hash in forty has no letter, so an ending of decimal digits alone is a hash
    if it is as long as torch.hub's, eight digits, and neither a date ('20240131', '31012024', '01312024') nor a count
    padded with zeros ('00100000').
    """
    if not ending.isdecimal():
        return True
    return len(ending) == 8 and not ending.startswith("0") and not any(_is_date(ending, x) for x in _DATES)


def _is_date(digits: str, form: str) -> bool:
    try:
        return 1990 <= datetime.datetime.strptime(digits, form).year < 2100
    except ValueError:
        return False


def _read_zip(file: IO[bytes], size: int) -> tuple[dict[str, _Tensor], dict[str, bytes]]:
    """Reads ({name: tensor}, {storage's key: its bytes}) from the zip layout."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        # PyTorch does not compress, so a small file cannot hold large members.
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise ValueError("it is compressed")
        if sum(info.file_size for info in members.values()) > size:
            raise ValueError("its members claim to be larger than the file")
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{len(pickles)} of its members are called data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        with archive.open(pickles[0]) as pickled:
            tensors = _tensors(_unpickle(pickled, size))
        return tensors, {name.removeprefix(f"{folder}data/"): archive.read(name) for name in members}


def _read_stream(file: IO[bytes], size: int) -> tuple[dict[str, _Tensor], dict[str, bytes]]:
    """Reads the same from the layout before PyTorch 1.6: five pickles, then each storage's length and bytes."""
    file.seek(0)
    if _unpickle(file, size) != _MAGIC or _unpickle(file, size) != _PROTOCOL:
        raise ValueError("it does not begin like a state_dict")
    if not _unpickle(file, size)["little_endian"]:
        raise ValueError("it was written on a big-endian machine")
    tensors = _tensors(_unpickle(file, size))
    itemsizes = {x.storage.key: np.dtype(x.storage.dtype).itemsize for x in tensors.values()}
    contents = {}
    for key in _unpickle(file, size):
        (length,) = struct.unpack("<q", file.read(8))
        if not 0 <= length <= size:
            raise ValueError(f"storage {key} would have {length} numbers")
        contents[key] = file.read(length * itemsizes[key])
    return tensors, contents


def _tensors(tree: Any) -> dict[str, _Tensor]:
    """Returns the pickled object if it is a dictionary of tensors that memory has room for; else raises ValueError."""
    if not isinstance(tree, dict) or not all(isinstance(k, str) and isinstance(x, _Tensor) for k, x in tree.items()):
        raise ValueError("it holds something other than a dictionary of tensors")
    # Together they may be larger than the file, since many tensors may be views of one storage.
    if sum(math.prod(x.shape) * np.dtype(x.storage.dtype).itemsize for x in tree.values()) > MAX_BYTES:
        raise ValueError("its tensors claim to be larger than a weights file may be")
    return dict(tree)


def _array(tensor: _Tensor, content: bytes) -> np.ndarray:
    storage, offset, shape, strides = tensor
    numbers = np.frombuffer(content, storage.dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    inside = min((offset, *shape, *strides)) >= 0 and math.prod(shape) <= numbers.size and last < max(numbers.size, 1)
    if numbers.size != storage.length or not inside:
        raise ValueError(f"a tensor of shape {shape} does not fit its {numbers.size} numbers")
    steps = [stride * numbers.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps).copy()
