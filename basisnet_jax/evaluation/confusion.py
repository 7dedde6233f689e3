"""Pairs of classes that the preview confuses, and that the specialist tells apart."""

from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """Two classes, and the images of either that a stage takes for the other."""

    one: int
    other: int
    preview: int
    specialist: int


def mended_pairs(labels_N: np.ndarray, preview_N: np.ndarray, specialist_N: np.ndarray) -> list[Pair]:
    """Returns the pairs that the specialist confuses less often than the preview, the most mended first.

    Args:
      labels_N: the images' classes.
      preview_N: the preview's answers.
      specialist_N: the specialist's answers.
    """
    confused = {}
    for stage, answers_N in (("preview", preview_N), ("specialist", specialist_N)):
        wrong_2xM = np.stack([labels_N, answers_N])[:, answers_N != labels_N]
        pairs_2xP, counts_P = np.unique(np.sort(wrong_2xM, axis=0), axis=1, return_counts=True)
        confused[stage] = dict(zip(map(tuple, pairs_2xP.T.tolist()), counts_P.tolist(), strict=True))
    pairs = [
        Pair(one, other, count, confused["specialist"].get((one, other), 0))
        for (one, other), count in confused["preview"].items()
    ]
    mended = [pair for pair in pairs if pair.specialist < pair.preview]
    return sorted(mended, key=lambda pair: (pair.specialist - pair.preview, -pair.preview, pair.one, pair.other))
