"""A folder of images as a data set: FOLDER/split/class/*.jpg, or FOLDER/class/*.jpg split by a share of each class."""

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from basisnet_jax.errors import UserError
from basisnet_jax.host.command_line import as_text, is_text
from basisnet_jax.images.files import OF_THE_SYSTEM, SUFFIXES

LAYOUT = f"data.name 'folder' needs files split/class/*{SUFFIXES[0]} there (or {', '.join(SUFFIXES[1:])})"
LONGEST_NAME = 100  # characters of a class's name, which is shown in tables and plots


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of one split, in the order of their names; a label is the index of the sorted class folder."""

    root: str
    files: tuple[str, ...]  # relative to the root: 'cat/1.jpg'
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
        return [self._read(index) for index in indices]

    def identity(self) -> str:
        """Returns a digest of the files' names, in order, and not of their contents."""
        return f"folder, {len(self)} files named {hashlib.sha256(repr(self.files).encode()).hexdigest()}"

    def _read(self, index: int) -> dict[str, Any]:
        path = pathlib.Path(self.root, self.files[index])
        try:
            return {"image": path.read_bytes(), "label": self.labels[index], "file_name": self.files[index]}
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}), which was there when the run began.") from None


def open_splits(folder: str, train: str, evaluation: str, eval_share: float) -> tuple[Split, Split, tuple[str, ...]]:
    """Lists the images of two splits without reading them.

    Args:
      folder: holds a folder for each split, or for each class if `eval_share` is not 0.
      train: the training split's name.
      evaluation: the evaluation split's name.
      eval_share: share of each class's images that the split 'test' gets; the others are in 'train'. 0: the splits
        have folders.

    Returns:
      The two splits and the names of the classes.

    Raises:
      UserError: a folder does not exist, has no images or has other files, a class's name cannot be printed, or the
        splits have different classes.
    """
    root = pathlib.Path(folder).expanduser().absolute()
    if not folder or not root.is_dir():
        raise UserError(f"config.data.dir = {folder!r} is not a folder; {LAYOUT}.")
    if eval_share:
        return _divided(root, train, evaluation, eval_share)
    names = {name: _class_names(root / name) for name in (train, evaluation) if (root / name).is_dir()}
    for field, name in (("train_split", train), ("eval_split", evaluation)):
        if name not in names:
            raise UserError(f"config.data.{field} = {name!r} is not a folder in {root}, which has {_instead(root)}")
    differing = sorted(set(names[train]) ^ set(names[evaluation]))
    if differing:
        raise UserError(
            f"{root} has the class {differing[0]!r} in only one of {train!r} and {evaluation!r} "
            f"({len(differing)} such classes); give both splits the same class folders."
        )
    splits = [_split(root / name, names[train]) for name in (train, evaluation)]
    _check_every_class(root / train, splits[0], names[train])
    return splits[0], splits[1], tuple(names[train])


def _instead(root: pathlib.Path) -> str:
    """Says what a folder has in the place of a split, and what to do about it."""
    folders = [entry.name for entry in _entries(root) if entry.is_dir()]
    if any(entry.name.lower().endswith(SUFFIXES) for name in folders for entry in _entries(root / name)):
        return (
            f"class folders without splits ({', '.join(folders[:3])}); --config.data.eval_share=0.2 "
            "keeps a fifth of each class for evaluation."
        )
    return f"{', '.join(folders[:20]) or 'no folders'}; {LAYOUT}."


def _divided(
    root: pathlib.Path, train: str, evaluation: str, eval_share: float
) -> tuple[Split, Split, tuple[str, ...]]:
    """Takes a share of each class for the split 'test': the files whose names have the smallest hashes.

    The split is therefore the same on every machine, and a new image moves at most one other image.
    """
    for field, name in (("train_split", train), ("eval_split", evaluation)):
        if name not in ("train", "test"):
            raise UserError(
                f"config.data.{field} = {name!r}: with config.data.eval_share it must be 'train' or 'test'."
            )
    classes = _class_names(root)
    whole = _split(root, classes)
    _check_every_class(root, whole, classes)
    by_class = collections.defaultdict(list)
    for file, label in zip(whole.files, whole.labels, strict=True):
        by_class[label].append(file)
    kept: set[str] = set()
    for label, files in by_class.items():
        if len(files) < 2:
            raise UserError(
                f"{root / classes[label]} holds one image, which cannot be in both splits; add another image."
            )
        count = min(max(1, round(eval_share * len(files))), len(files) - 1)
        kept.update(sorted(files, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())[:count])
    splits = {}
    for name in ("train", "test"):
        pairs = [x for x in zip(whole.files, whole.labels, strict=True) if (x[0] in kept) == (name == "test")]
        splits[name] = Split(whole.root, tuple(file for file, _ in pairs), tuple(label for _, label in pairs))
    return splits[train], splits[evaluation], tuple(classes)


def name_of(folder: str) -> str:
    """Returns a folder's own name, without the folders above it."""
    return as_text(pathlib.Path(folder).expanduser().absolute().name)


def data_name(settings: Mapping[str, Any]) -> str:
    """Returns the name of the data set in a run's config.data: TFDS's, or the folder's own."""
    return name_of(settings["dir"]) if settings["name"] == "folder" else settings["name"]


def _entries(path: pathlib.Path) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder, sorted by name, without hidden files."""
    try:
        with os.scandir(path) as entries:
            return sorted((x for x in entries if not x.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {path} ({error.strerror}); make it readable.") from None


def _class_names(path: pathlib.Path) -> list[str]:
    """Returns the names of a split's class folders. Raises UserError if one of them cannot be a class's name."""
    names = []
    for entry in _entries(path):
        if entry.is_dir():
            names.append(entry.name)
        elif entry.name.lower().endswith(SUFFIXES):
            raise UserError(f"{path / entry.name} is not in a class folder; move it into one, as in {path}/cat.")
    for name in names:
        if not is_text(name):
            raise UserError(f"the class folder {name!r} of {path} has control characters in its name; rename it.")
        if len(name) > LONGEST_NAME:
            raise UserError(
                f"the class folder {name!r} of {path} has a name of {len(name)} characters; rename it with at most "
                f"{LONGEST_NAME}."
            )
    return names


def _split(root: pathlib.Path, classes: Sequence[str]) -> Split:
    files, labels, skipped = [], [], 0
    for label, name in enumerate(classes):
        for entry in _entries(root / name):
            if entry.name.lower() in OF_THE_SYSTEM:
                skipped += 1
                continue
            if not entry.name.lower().endswith(SUFFIXES) or entry.is_dir():
                kind = "a folder" if entry.is_dir() else f"not one of {', '.join(SUFFIXES)}"
                raise UserError(f"{root / name / entry.name} is {kind}; convert it, or move it elsewhere.")
            files.append(f"{name}/{entry.name}")
            labels.append(label)
    if not files:
        raise UserError(f"{root} holds no images; put them in folders of their class, as in {root / 'cat' / '1.jpg'}.")
    if skipped:
        what = "1 file named %s is" if skipped == 1 else f"{skipped} files named %s are"
        logging.warning(f"%s: {what} skipped", root, " or ".join(OF_THE_SYSTEM))
    return Split(str(root), tuple(files), tuple(labels))


def _check_every_class(root: pathlib.Path, split: Split, classes: Sequence[str]) -> None:
    """Raises UserError if a class has no training image."""
    missing = sorted({*range(len(classes))} - {*split.labels})
    if missing:
        raise UserError(f"the class folder {root / classes[missing[0]]} holds no images; fill it, or remove it.")
