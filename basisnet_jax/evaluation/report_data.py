"""The report's data as JSON values: figures of the evaluation, brought into a form that a page can show.

The sizes of what grows with the data set are bounded: points of a curve, pictures, pairs of classes, coefficients, and
the letters of a name. All figures were computed for `results.json` and `early_termination.csv`.
"""

import base64
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from etils import epath

from basisnet_jax.evaluation import plots
from basisnet_jax.evaluation.calibration import Reliability
from basisnet_jax.evaluation.confusion import mended_pairs
from basisnet_jax.evaluation.early_exit import Candidate, reported_half
from basisnet_jax.evaluation.plots import Network
from basisnet_jax.evaluation.results import Criterion, EvaluationResults
from basisnet_jax.workdir.curves import STYLES, panels
from basisnet_jax.workdir.events import Series, read_events
from basisnet_jax.workdir.run_folder import without_folders

LETTERS = 80  # of a name
POINTS = 500  # of a series
PICTURES = 16  # of a group; the images whose answer an early exit changes are twice as many
PICTURE_SIDE = 96  # pixels
LOSSLESS_SIDE = 48  # a smaller picture is a PNG, a larger one a JPEG
QUALITY = 85  # of a JPEG
PAIRS = 40  # of classes
COEFFICIENTS = 1_500_000  # bytes, one each
SHADES = 64  # of the colour map


@dataclasses.dataclass(frozen=True)
class Answers:
    """One stage's answers to all images."""

    answer_N: np.ndarray  # int: class
    right_N: np.ndarray  # 1.0 where the answer is right


def names(given: Sequence[str]) -> list[str]:
    """Returns names, the long ones cut."""
    return [name if len(name) <= LETTERS else name[: LETTERS - 1] + "\N{HORIZONTAL ELLIPSIS}" for name in given]


def without_machine(results: EvaluationResults) -> dict[str, Any]:
    """Returns `results.json` without the folders of this machine: a report is passed on."""
    return without_folders(dataclasses.asdict(results))


def networks(whole: Network, compared: Sequence[Network], data_set: str) -> dict[str, list[dict[str, Any]]]:
    """Returns this network without early exits, other runs, and the data set's published points."""
    published = [Network(point.name, point.madds, point.top1) for point in plots.PUBLISHED.get(data_set, ())]
    groups = {"whole": [whole], "compared": compared, "published": published}
    return {group: [network._asdict() for network in members] for group, members in groups.items()}


def reliability(bins: Mapping[str, Reliability]) -> dict[str, dict[str, Any]]:
    """Returns each stage's bins and its expected calibration error."""
    return {
        stage: {"ece": found.ece, **{name: values.tolist() for name, values in vars(found).items()}}
        for stage, found in bins.items()
    }


def curves(events: epath.Path) -> list[dict[str, Any]]:
    """Returns the panels of a run's learning curves, at most `POINTS` points a series; none without event files."""
    series = read_events(events) if events.exists() else {}
    return [
        {
            "title": title,
            "lines": [{"label": STYLES[name].label, **_thinned(series[name])} for name in shown if series.get(name)],
        }
        for title, shown in panels(series).items()
        if any(series.get(name) for name in shown)
    ]


def _thinned(series: Series) -> dict[str, list[Any]]:
    points = sorted(series.items())
    points = points[:: math.ceil(len(points) / POINTS)]
    steps, values = zip(*points, strict=True)
    return {"steps": list(steps), "values": [value if math.isfinite(value) else None for value in values]}


@dataclasses.dataclass(frozen=True)
class Stops:
    """Where the slider of a criterion stops: at the rows of `early_termination.csv` and at the chosen thresholds."""

    candidate: Candidate
    index_T: np.ndarray  # of the candidate's thresholds
    chosen: dict[str, int]  # {setting: the stop that it chose}

    @classmethod
    def of(cls, candidate: Candidate, row: Criterion) -> "Stops":
        """Returns the stops of one criterion, whose chosen thresholds are in its row of the results."""
        chosen = {setting: candidate.index_of(point.threshold) for setting, point in row.points.items()}
        index_T = np.unique([*candidate.each_percent(), *chosen.values()])
        return cls(candidate, index_T, {name: int(np.searchsorted(index_T, index)) for name, index in chosen.items()})

    def exits_at(self) -> np.ndarray:
        """Returns int[N]: the first stop at which each image exits."""
        threshold_T = self.candidate.reported_on.threshold[self.index_T]
        return len(threshold_T) - np.searchsorted(threshold_T[::-1], self.candidate.confidence_N, side="right")

    def to_json(self, answers: Mapping[str, Answers]) -> dict[str, Any]:
        """Returns figures on the half for reporting: the CSV's, and what the exits change.

        'lost' counts the images that the preview answers wrongly where the specialist would have been right, 'gained'
        the opposite.
        """
        half_N = reported_half(len(self.candidate.confidence_N))
        gain_N = answers["preview"].right_N - answers["specialist"].right_N
        exited_TxM = self.exits_at()[half_N] <= np.arange(len(self.index_T))[:, None]
        return {
            "criterion": self.candidate.criterion,
            "temperature": self.candidate.temperature,
            "chosen": self.chosen,
            **{name: values[self.index_T].tolist() for name, values in vars(self.candidate.reported_on).items()},
            "lost": (exited_TxM & (gain_N[half_N] < 0)).sum(axis=1).tolist(),
            "gained": (exited_TxM & (gain_N[half_N] > 0)).sum(axis=1).tolist(),
        }


def choose_pictures(confidence_N: np.ndarray, answers: Mapping[str, Answers]) -> dict[str, np.ndarray]:
    """Returns the images to show, by group, each group from the first that exits to the last ('last': the reverse).

    'first' and 'last' are of all images. Of those for reporting that one stage alone gets right, 'specialist' and
    'preview' name that stage; where they are too many, they are evenly spaced.
    """
    order = np.argsort(-confidence_N, kind="stable")
    gain_N = answers["preview"].right_N - answers["specialist"].right_N
    reported_N = reported_half(len(confidence_N))

    def spaced(wanted_N: np.ndarray, most: int) -> np.ndarray:
        group = order[(wanted_N & reported_N)[order]]
        return group[np.unique(np.linspace(0, len(group) - 1, min(most, len(group))).round().astype(int))]

    return {
        "first": order[:PICTURES],
        "last": order[::-1][:PICTURES],
        "specialist": spaced(gain_N < 0, 2 * PICTURES),
        "preview": spaced(gain_N > 0, PICTURES),
    }


def pictures(
    pixels: Mapping[int, np.ndarray], labels_N: np.ndarray, answers: Mapping[str, Answers], stops: Sequence[Stops]
) -> dict[int, dict[str, Any]]:
    """Returns {index in the split: picture, class, both stages' answers, and each criterion's stop where it exits}.

    Args:
      pixels: {index: uint8[H, W, C]}.
      labels_N: classes of all images.
      answers: both stages' answers to all images.
      stops: the slider's stops for each criterion.
    """
    indices = list(pixels)
    exits_at = np.stack([criterion.exits_at()[indices] for criterion in stops], axis=1)
    return {
        index: {
            "uri": data_uri(pixels[index]),
            "label": int(labels_N[index]),
            "answers": {
                stage: {"answer": int(given.answer_N[index]), "right": bool(given.right_N[index])}
                for stage, given in answers.items()
            },
            "exits_at": first,
        }
        for index, first in zip(indices, exits_at.tolist(), strict=True)
    }


def data_uri(pixels: np.ndarray) -> str:
    """Returns an image uint8[H, W, C], at most `PICTURE_SIDE` pixels wide and tall, as a data URI."""
    longest = max(pixels.shape[:2])
    if longest > PICTURE_SIDE:
        scale = PICTURE_SIDE / longest
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    bgr = pixels if pixels.ndim == 2 or pixels.shape[2] == 1 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    kind, options = ("png", []) if longest <= LOSSLESS_SIDE else ("jpeg", [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    _, encoded = cv2.imencode(f".{kind}", bgr, options)
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"


def mended(labels_N: np.ndarray, answers: Mapping[str, Answers]) -> dict[str, Any]:
    """Returns the number of pairs of classes that the specialist mends, and the most mended ones."""
    pairs = mended_pairs(labels_N, answers["preview"].answer_N, answers["specialist"].answer_N)
    return {"count": len(pairs), "pairs": [pair._asdict() for pair in pairs[:PAIRS]]}


def coefficients(
    means: Mapping[str, np.ndarray], vectors: Sequence[str], similar: np.ndarray, images_K: np.ndarray
) -> dict[str, Any]:
    """Returns mean coefficients by class; of too many classes, every second, third, ... similar one.

    A coefficient is a byte: 255 times the square root of its share of the largest one, so that small ones differ.

    Args:
      means: the result of `CoefficientSums.means`.
      vectors: names of the vectors.
      similar: classes with images, similar ones together.
      images_K: images by class.
    """
    from matplotlib import colormaps, colors

    by_class_KxLxN = means["by_class"]
    step = math.ceil(len(similar) / max(COEFFICIENTS // by_class_KxLxN[0].size, 1))
    shown = similar[::step]
    largest = float(by_class_KxLxN.max())
    bytes_SxLxN = np.round(255 * np.sqrt(by_class_KxLxN[shown] / largest)).astype(np.uint8)
    shades = colormaps["cividis"](np.linspace(0, 1, SHADES))
    return {
        "vectors": names(vectors),
        "bases": by_class_KxLxN.shape[2],
        "classes": shown.tolist(),
        "step": step,
        "images": images_K[shown].astype(int).tolist(),
        "largest": largest,
        "bytes": base64.b64encode(bytes_SxLxN.tobytes()).decode(),
        "shades": [colors.to_hex(shade) for shade in shades],
    }
