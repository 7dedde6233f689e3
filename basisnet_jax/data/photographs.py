"""A folder of somebody's own photographs: which splits it has, and whether it holds enough to train on."""

import collections
import os
from typing import NamedTuple

from basisnet_jax.data import folder as folder_lib
from basisnet_jax.errors import UserError

FEWEST = 5  # photographs of a class
EVAL_SHARE = 0.2  # of each class's photographs, where the folder has no splits
EVAL_SPLITS = ("val", "valid", "validation", "test")


class Splits(NamedTuple):
    """Names of a folder's two splits, as `config.data` takes them."""

    train: str
    evaluation: str
    eval_share: float  # 0 where each split has a folder


def find_splits(photos: str) -> Splits:
    """Returns the splits that have folders, train/ and one of `EVAL_SPLITS`; else a share of each class."""
    there = [name for name in EVAL_SPLITS if os.path.isdir(os.path.join(photos, name))]
    if there and os.path.isdir(os.path.join(photos, "train")):
        return Splits("train", there[0], 0.0)
    return Splits("train", "test", EVAL_SHARE)


def list_photographs(photos: str, flag: str) -> tuple[folder_lib.Split, folder_lib.Split]:
    """Lists a folder's photographs for training and for evaluation without reading them.

    Args:
      photos: folder with a folder for each class, or for each split.
      flag: the flag that names the folder, for messages.

    Raises:
      UserError: as `folder.open_splits`; or there are fewer than two classes, or fewer than `FEWEST` of one.
    """
    if not os.path.isdir(photos):
        raise UserError(
            f"--{flag} = {photos!r} is not a folder; name one that has a folder of photographs for each class, as "
            f"{os.path.join(photos, 'cat', '1.jpg')}."
        )
    splits = find_splits(photos)
    train, evaluation, classes = folder_lib.open_splits(photos, *splits)
    if len(classes) < 2:
        raise UserError(
            f"--{flag} = {photos!r} has one class ({classes[0]}); add a folder with photographs of something else."
        )
    counts = collections.Counter((*train.labels, *evaluation.labels))
    label, fewest = min(counts.items(), key=lambda item: item[1])
    if fewest < FEWEST:
        raise UserError(
            f"--{flag} = {photos!r} has {fewest} photographs of {classes[label]}; add more, each class needs {FEWEST} "
            "at least and does better with 100."
        )
    return train, evaluation
