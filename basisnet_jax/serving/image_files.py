"""Classifies image files, and lays out the answers as a table."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from basisnet_jax.host import command_line
from basisnet_jax.host.command_line import as_text
from basisnet_jax.images.files import find_images, read_images
from basisnet_jax.serving.two_stage import TwoStageClassifier

READ_AT_ONCE = 256  # images whose pixels are in memory at a time


class Row(NamedTuple):
    """A class that was found for an image file."""

    file: str
    label: str
    probability: float
    stage: str  # 'preview' or 'specialist'
    madds: int


def predict_files(
    classifier: TwoStageClassifier,
    pattern: str,
    top_k: int = 1,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[list[Row], list[str]]:
    """Classifies image files.

    Args:
      classifier: a trained model.
      pattern: a folder, or a pattern of names such as 'photos/*.jpg'; see `files.find_images`.
      top_k: how many classes to return for each image, the most probable first.
      progress: called with the number of files that are classified, and the number of all.

    Returns:
      `top_k` rows for each image in the order of the names, and a sentence for each file that is not an image.

    Raises:
      UserError: the pattern matches no images.
    """
    files = find_images(pattern, "images")
    rows: list[Row] = []
    bad: list[str] = []
    for start in range(0, len(files), READ_AT_ONCE):
        some = files[start : start + READ_AT_ONCE]
        images = dict(read_images(some, classifier.side, classifier.channels, classifier.crop, bad))
        if images:
            rows += _rows(classifier, images, top_k)
        progress(start + len(some), len(files))
    return rows, bad


def _rows(classifier: TwoStageClassifier, images: dict[str, np.ndarray], top_k: int) -> Iterator[Row]:
    """Yields the answers on images, {file: pixels}."""
    answers = classifier.classify(np.stack(list(images.values())), top_k)
    for file, labels, probabilities, early, madds in zip(images, *answers, strict=True):
        stage = "preview" if early else "specialist"
        for label, probability in zip(labels, probabilities, strict=True):
            yield Row(as_text(file), classifier.classes[label], float(probability), stage, int(madds))


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
