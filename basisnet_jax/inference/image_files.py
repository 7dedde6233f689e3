"""Reads and classifies image files, and lays out the answers as a table."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from basisnet_jax.data import preprocess
from basisnet_jax.data.decode import BadExampleError
from basisnet_jax.data.folder import as_text, find_images
from basisnet_jax.host import command_line, terminal
from basisnet_jax.inference.jax_classifier import TwoStageClassifier

READ_AT_ONCE = 256  # images whose pixels are in memory at a time


class Row(NamedTuple):
    """The answer on one image file."""

    file: str
    label: str
    probability: float
    stage: str  # 'preview' or 'specialist'
    madds: int


def predict_files(classifier: TwoStageClassifier, pattern: str) -> tuple[list[Row], list[str]]:
    """Classifies image files.

    Args:
      classifier: a trained model.
      pattern: a folder, or a pattern of names such as 'photos/*.jpg'; see `folder.find_images`.

    Returns:
      A row for each image in the order of the names, and a sentence for each file that is not an image.

    Raises:
      UserError: the pattern matches no images.
    """
    files = find_images(pattern, "images")
    rows: list[Row] = []
    bad: list[str] = []
    with terminal.Progress() as progress:
        progress.stage("classifying", len(files))
        for start in range(0, len(files), READ_AT_ONCE):
            some = files[start : start + READ_AT_ONCE]
            images = dict(read_images(some, classifier.side, classifier.channels, classifier.crop, bad))
            if images:
                rows += _rows(classifier, images)
            progress.advance(len(some))
    return rows, bad


def _rows(classifier: TwoStageClassifier, images: dict[str, np.ndarray]) -> Iterator[Row]:
    """Yields the answers on images, {file: pixels}."""
    answers = classifier.classify(np.stack(list(images.values())))
    for file, label, probability, early, madds in zip(images, *answers, strict=True):
        stage = "preview" if early else "specialist"
        yield Row(as_text(file), classifier.classes[label], float(probability), stage, int(madds))


def read_images(
    files: Iterable[str], side: int, channels: int, crop: preprocess.EvalCrop, bad: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (file, its pixels as in evaluation); adds a sentence to `bad` for each file that is not an image."""
    for file in files:
        try:
            with open(file, "rb") as opened:
                encoded = opened.read()
            yield file, preprocess.load_image(encoded, side, channels, crop)
        except BadExampleError as error:
            bad.append(f"{file} {error}")
        except OSError as error:
            bad.append(f"{file} cannot be read ({error.strerror})")


def table(rows: Sequence[Row], style: str) -> str:
    """Returns the rows as text; the style is 'table' (for people), 'csv' or 'json'."""
    if style == "json":
        return json.dumps([row._asdict() for row in rows], indent=2)
    if style == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([Row._fields, *rows])
        return text.getvalue().rstrip("\n")
    cells = [Row._fields, *((x.file, x.label, f"{x.probability:.4f}", x.stage, f"{x.madds:,}") for x in rows)]
    return "\n".join(command_line.align(cells, left=(0, 1, 3)))
