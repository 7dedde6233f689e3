"""Early termination: what a threshold saves and costs, and how one is chosen. NumPy, in float64.

The results of a threshold are simulated from the logits of both stages, and equal those of `TwoStageClassifier` with
that threshold.
"""

import dataclasses
from typing import Protocol, TypeVar

import numpy as np

from basisnet_jax.errors import UserError
from basisnet_jax.serving.exit_rule import NEVER

Rate = TypeVar("Rate", float, np.ndarray)


class StageMadds(Protocol):
    """Multiply-adds of an image that exits and of an image that does not."""

    @property
    def preview(self) -> int:
        """Returns the multiply-adds of the first stage."""

    @property
    def total(self) -> int:
        """Returns the multiply-adds of both stages."""


def average_madds(cost: StageMadds, exit_rate: Rate) -> Rate:
    """Returns the mean multiply-adds of an image where the preview alone answers a share `exit_rate` of images."""
    return cost.preview + (1 - exit_rate) * (cost.total - cost.preview)


@dataclasses.dataclass(frozen=True)
class Curve:
    """The results of T thresholds, from the highest to the lowest: more and more images exit."""

    threshold: np.ndarray
    exit_rate: np.ndarray
    top1: np.ndarray
    madds: np.ndarray  # mean multiply-adds of an image

    def point(self, index: int) -> dict[str, float]:
        """Returns one threshold's figures by name."""
        return {name: float(values[index]) for name, values in vars(self).items()}

    @property
    def mean_top1(self) -> float:
        """Top-1 averaged over all exit rates: the area under the curve."""
        return float(np.trapezoid(self.top1, self.exit_rate))


def simulate(
    confidence_B: np.ndarray,
    preview_correct_B: np.ndarray,
    correct_B: np.ndarray,
    cost: StageMadds,
    threshold_T: np.ndarray,
) -> Curve:
    """Computes the curve of early termination from both stages' answers on the same images.

    Args:
      confidence_B: the preview's confidence, by some criterion.
      preview_correct_B: 1.0 where the preview is right.
      correct_B: 1.0 where the specialist is right.
      cost: the cost of an image.
      threshold_T: thresholds from the highest to the lowest.
    """
    order = np.argsort(-confidence_B, kind="stable")
    exited_T = np.searchsorted(-confidence_B[order], -threshold_T, side="right")
    gained = np.concatenate([[0.0], np.cumsum((preview_correct_B - correct_B)[order])])
    exit_rate = exited_T / len(order)
    return Curve(
        threshold_T, exit_rate, (correct_B.sum() + gained[exited_T]) / len(order), average_madds(cost, exit_rate)
    )


def all_thresholds(confidence_B: np.ndarray) -> np.ndarray:
    """Returns one threshold between each pair of neighbouring confidences and one at each end, highest first.

    The inner ones lie midway between neighbours, so that the last bit of a confidence decides nothing.
    """
    values = np.unique(confidence_B)[::-1]
    return np.concatenate([[NEVER], (values[1:] + values[:-1]) / 2, [0.0]])


def reported_half(count: int) -> np.ndarray:
    """Returns bool[count]: the images that figures are reported on; everything is chosen on the others.

    An image's half depends only on its index in the split and on the split's size, by a fixed random draw: devices and
    batches do not matter, and a split that is sorted by class is divided as well as any other.
    """
    if count < 2:
        raise UserError(
            f"the evaluation split holds {count} image, but needs 2: the exit rule is chosen on one half and "
            "reported on the other; take a larger split."
        )
    return np.random.default_rng(0).permutation(count) >= count // 2


def at_most_madds(curve: Curve, target: float, setting: str) -> int:
    """Returns the index of the threshold with the fewest exits and at most `target` mean multiply-adds.

    Raises:
      UserError: the preview alone costs more; the message names the user's setting.
    """
    if curve.madds[-1] > target:
        raise UserError(
            f"{setting} = {target:,.0f} is less than the preview alone costs, {curve.madds[-1]:,.0f}; raise it."
        )
    return int(np.argmax(curve.madds <= target))


def at_most_drop(curve: Curve, drop: float) -> int:
    """Returns the index of the threshold with the most exits that loses at most `drop` of the top-1 without exits."""
    # The quotients are rounded: a drop that equals `drop` must not look larger.
    return int(np.flatnonzero(curve.top1 >= curve.top1[0] - drop - 1e-9)[-1])
