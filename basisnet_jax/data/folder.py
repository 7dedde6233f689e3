"""A folder of images as a data set: FOLDER/split/class/*.jpg, *.jpeg or *.png."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

from basisnet_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of one split, in the order of their names; a class is the index of its folder among the sorted."""

    root: str
    files: tuple[str, ...]  # under the root, 'cat/1.jpg'
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
        return [self._read(index) for index in indices]

    def identity(self) -> str:
        """A digest of the files' names, in order; not of what is in them."""
        return f"folder, {len(self)} files named {hashlib.sha256(repr(self.files).encode()).hexdigest()}"

    def _read(self, index: int) -> dict[str, Any]:
        path = pathlib.Path(self.root, self.files[index])
        try:
            return {"image": path.read_bytes(), "label": self.labels[index], "file_name": self.files[index]}
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}), which was there when the run began.") from None


def open_splits(folder: str, train: str, evaluation: str) -> tuple[Split, Split, tuple[str, ...]]:
    """Lists two splits; no image is read.

    Args:
      folder: that holds a folder for each split.
      train: the training split's name.
      evaluation: the evaluation split's name.

    Returns:
      The two splits and the names of the classes.

    Raises:
      UserError: a folder that is not there or has no images, other files in it, or splits of different classes.
    """
    layout = "data.name 'folder' reads split/class/*.jpg, *.jpeg and *.png in it"
    root = pathlib.Path(folder).expanduser().absolute()
    if not folder or not root.is_dir():
        raise UserError(f"config.data.dir = {folder!r} is no folder; {layout}.")
    names = {name: _folders(root / name) for name in (train, evaluation) if (root / name).is_dir()}
    for field, name in (("train_split", train), ("eval_split", evaluation)):
        if name not in names:
            there = ", ".join(_folders(root)) or "no folders"
            raise UserError(f"config.data.{field} = {name!r} is no folder of {root}, which has {there}; {layout}.")
    differing = sorted(set(names[train]) ^ set(names[evaluation]))
    if differing:
        raise UserError(
            f"{root} has the class {differing[0]!r} in only one of {train!r} and {evaluation!r} "
            f"({len(differing)} such); give both splits the same class folders."
        )
    return _split(root / train, names[train]), _split(root / evaluation, names[train]), tuple(names[train])


def _folders(path: pathlib.Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _split(root: pathlib.Path, classes: Sequence[str]) -> Split:
    files, labels = [], []
    for label, name in enumerate(classes):
        for entry in sorted(path.name for path in (root / name).iterdir() if not path.name.startswith(".")):
            if not entry.lower().endswith(SUFFIXES):
                raise UserError(f"{root / name / entry} is no .jpg, .jpeg or .png; move it elsewhere.")
            files.append(f"{name}/{entry}")
            labels.append(label)
    if not files:
        raise UserError(f"{root} holds no images; put them in folders of their class, as in {root / 'cat' / '1.jpg'}.")
    return Split(str(root), tuple(files), tuple(labels))
