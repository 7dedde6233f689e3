"""Chooses an exit threshold with labelled image files: on one half of them; its results are of the other half."""

import csv
import os
from typing import NamedTuple

import numpy as np

from basisnet_jax.errors import UserError
from basisnet_jax.images.files import find_images, read_images
from basisnet_jax.serving.exit_curve import (
    Curve,
    all_thresholds,
    at_most_drop,
    at_most_madds,
    reported_half,
    simulate,
)
from basisnet_jax.serving.exit_rule import ExitRule
from basisnet_jax.serving.image_files import READ_AT_ONCE
from basisnet_jax.serving.two_stage import TwoStageClassifier

COLUMNS = ("file", "label")  # of a .csv file


class Choice(NamedTuple):
    """A threshold of the preview's largest probability, and what it does on the images that did not choose it."""

    threshold: float
    images: int  # that the results are of
    exit_rate: float
    top1: float
    top1_without_exits: float
    madds: float  # of an image, on average

    def __str__(self) -> str:
        return (
            f"threshold {self.threshold}: {self.exit_rate:.1%} of the images exit; top-1 {self.top1:.4f}, without "
            f"exits {self.top1_without_exits:.4f}; {self.madds:,.0f} multiply-adds on average (on the {self.images} "
            "images that it was not chosen on)"
        )


def labelled_files(path: str, classes: tuple[str, ...]) -> dict[str, int]:
    """Lists labelled image files.

    Args:
      path: a folder with a folder of images for each class, or a .csv file with the columns `file` and `label`, whose
        files are relative to its folder.
      classes: the classes' names.

    Returns:
      {file: index of its class}, sorted by file.

    Raises:
      UserError: there are no images, a label is not one of the classes, or a row of the .csv file is not complete.
    """
    if os.path.isdir(path):
        named = {file: os.path.relpath(file, path).split(os.sep)[0] for file in find_images(path, "images")}
    else:
        named = _listed(path)
    numbers = {name: number for number, name in enumerate(classes)}
    for file, label in named.items():
        if label not in numbers:
            raise UserError(
                f"{file} has the label {label!r}, which is not one of the export's {len(classes)} classes in "
                f"labels.txt ({', '.join(map(repr, classes[:3]))} ...); name folders, or labels, as they are there."
            )
    return {file: numbers[named[file]] for file in sorted(named)}


def _listed(path: str) -> dict[str, str]:
    """Reads {file: label} from a .csv file."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as opened:  # spreadsheets begin a file with a mark
            rows = list(csv.DictReader(opened))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a .csv file with the columns {' and '.join(COLUMNS)} ({error}).") from None
    for number, row in enumerate(rows, 2):
        if any(not row.get(column) for column in COLUMNS):
            raise UserError(
                f"row {number} of {path} has no {' or '.join(COLUMNS)}; give a .csv file whose first row is "
                f"'{','.join(COLUMNS)}'."
            )
    if not rows:
        raise UserError(f"{path} lists no images; each row is the name of a file and its label.")
    named: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        if named.setdefault(row["file"], row["label"]) != row["label"]:
            raise UserError(f"row {number} of {path} gives {row['file']} another label than a row before; remove one.")
    return {os.path.join(os.path.dirname(path), file): label for file, label in named.items()}


def choose_threshold(
    classifier: TwoStageClassifier,
    files: dict[str, int],
    *,
    max_accuracy_drop: float | None = None,
    madds_target: float | None = None,
) -> tuple[Choice, list[str]]:
    """Chooses the threshold that saves most at a bound of accuracy, or loses least at a bound of multiply-adds.

    Args:
      classifier: with both stages; its own rule is not used.
      files: {file: index of its class}.
      max_accuracy_drop: most top-1 that may be lost, as a share of 1; one of the two bounds is None.
      madds_target: most multiply-adds of an image on average.

    Returns:
      The choice, and a sentence for each file that is not an image; such a file is left out.

    Raises:
      UserError: the network has no preview, fewer than two images can be read, the preview alone costs more than
        `madds_target`, or `max_accuracy_drop` is not a share.
    """
    if max_accuracy_drop is not None and not 0 <= max_accuracy_drop <= 1:
        raise UserError(f"--max_accuracy_drop={max_accuracy_drop:g} is not a share of 1; give 0.001 for 0.1 points.")
    if classifier.first_stage is None:
        raise UserError("this network has no preview, so no image exits early and there is no threshold to choose.")
    answers, bad = _answers(classifier, files)
    if len(answers.confidence_N) < 2:
        raise UserError(
            f"{len(answers.confidence_N)} of the {len(files)} images can be read, but 2 are needed: the threshold is "
            "chosen on one half and reported on the other."
        )
    reported_N = reported_half(len(answers.confidence_N))
    thresholds = all_thresholds(answers.confidence_N[~reported_N])

    def curve_of(half_N: np.ndarray) -> Curve:
        confidence_B, preview_correct_B, correct_B = (array_N[half_N] for array_N in answers)
        return simulate(confidence_B, preview_correct_B, correct_B, classifier.cost, thresholds)

    chosen_on, reported_on = curve_of(~reported_N), curve_of(reported_N)
    if madds_target is not None:
        index = at_most_madds(chosen_on, madds_target, "--madds_target")
    else:
        index = at_most_drop(chosen_on, max_accuracy_drop or 0.0)
    point = reported_on.point(index)
    choice = Choice(
        threshold=point["threshold"],
        images=int(reported_N.sum()),
        exit_rate=point["exit_rate"],
        top1=point["top1"],
        top1_without_exits=float(reported_on.top1[0]),
        madds=point["madds"],
    )
    return choice, bad


class _Answers(NamedTuple):
    """What both stages answer on N images."""

    confidence_N: np.ndarray  # float64, of the preview
    preview_correct_N: np.ndarray  # 1.0 where the preview is right
    correct_N: np.ndarray  # 1.0 where the specialist is right


def _answers(classifier: TwoStageClassifier, files: dict[str, int]) -> tuple[_Answers, list[str]]:
    """Runs both stages on all images; returns a sentence for each file that is not an image, too."""
    bad: list[str] = []
    pieces = [_Answers(np.zeros(0), np.zeros(0), np.zeros(0))]
    names = list(files)
    for start in range(0, len(names), READ_AT_ONCE):
        some = names[start : start + READ_AT_ONCE]
        images = dict(read_images(some, classifier.side, classifier.channels, classifier.crop, bad))
        if not images:
            continue
        pixels, labels_B = np.stack(list(images.values())), np.array([files[file] for file in images])
        previewed = classifier.preview_stage(pixels)
        assert previewed.logits_BxK is not None  # for mypy: there is a preview
        both = classifier.specialist_stage(pixels, previewed._replace(exits_B=np.zeros(len(pixels), bool)))
        confidence_B = ExitRule().confidence(previewed.logits_BxK)
        preview_correct_B = previewed.logits_BxK.argmax(axis=-1) == labels_B
        pieces.append(_Answers(confidence_B, preview_correct_B * 1.0, (both.labels == labels_B) * 1.0))
    return _Answers(*(np.concatenate(arrays) for arrays in zip(*pieces, strict=True))), bad
