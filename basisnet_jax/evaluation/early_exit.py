"""Early termination: when the preview answers alone, and what that saves and costs. NumPy, in float64.

The paper's criterion is unknown to us; `exit_rule.py` has three. The results of a threshold are simulated from the
logits of both stages, and equal those of `TwoStageClassifier` with that threshold.
"""

import dataclasses

import numpy as np

from basisnet_jax.errors import UserError
from basisnet_jax.evaluation.calibration import fit_temperature
from basisnet_jax.models.cost import Cost
from basisnet_jax.serving.exit_rule import CRITERIA, NEVER, ChosenRule, ExitRule, Point, Provenance


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
    cost: Cost,
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
    return Curve(threshold_T, exit_rate, (correct_B.sum() + gained[exited_T]) / len(order), cost.average(exit_rate))


def all_thresholds(confidence_B: np.ndarray) -> np.ndarray:
    """Returns one threshold between each pair of neighbouring confidences and one at each end, highest first.

    The inner ones lie midway between neighbours, so that the last bit of a confidence decides nothing.
    """
    values = np.unique(confidence_B)[::-1]
    return np.concatenate([[NEVER], (values[1:] + values[:-1]) / 2, [0.0]])


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A criterion and a temperature, with their curves at the same thresholds on both halves of the images."""

    criterion: str
    temperature: float
    confidence_N: np.ndarray  # the preview's confidence in all images
    chosen_on: Curve
    reported_on: Curve

    def index_of(self, threshold: float) -> int:
        """Returns the index of one of the curves' thresholds."""
        return int(np.flatnonzero(self.chosen_on.threshold == threshold)[0])

    def each_percent(self) -> list[int]:
        """Returns 101 indices: of the first thresholds that let 0, 1, ... 100% of the half for choosing exit."""
        return np.searchsorted(self.chosen_on.exit_rate, np.arange(101) / 100).tolist()

    def rule(self, index: int) -> ExitRule:
        """Returns the exit rule of one threshold."""
        return ExitRule(self.criterion, self.temperature, float(self.chosen_on.threshold[index]))

    def choice(self, index: int, chosen_by: str, images: int, provenance: Provenance) -> ChosenRule:
        """Returns the exit rule of one threshold, with its provenance.

        Args:
          index: index of the threshold.
          chosen_by: the setting that chose the threshold.
          images: number of images in both halves.
          provenance: the weights and images that the rule was chosen with.
        """
        counts = images // 2, images - images // 2  # as `reported_half` splits them
        points = [
            Point(count, float(curve.exit_rate[index]), float(curve.top1[index]), float(curve.madds[index]))
            for count, curve in zip(counts, (self.chosen_on, self.reported_on), strict=True)
        ]
        return ChosenRule(self.rule(index), chosen_by, provenance, *points)


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


def candidates(
    preview_logits_NxK: np.ndarray,
    labels_N: np.ndarray,
    preview_correct_N: np.ndarray,
    correct_N: np.ndarray,
    cost: Cost,
) -> list[Candidate]:
    """Returns every criterion at temperature 1 and at the temperature fitted on the half for choosing.

    Arguments hold all images. The first candidate is the plain one: the largest probability at temperature 1.
    """
    reported_N = reported_half(len(labels_N))
    fitted = fit_temperature(preview_logits_NxK[~reported_N], labels_N[~reported_N])
    listed = []
    for temperature in (1.0, fitted):
        for criterion in CRITERIA:
            confidence_N = ExitRule(criterion, temperature).confidence(preview_logits_NxK)
            thresholds = all_thresholds(confidence_N[~reported_N])
            curves = [
                simulate(confidence_N[half], preview_correct_N[half], correct_N[half], cost, thresholds)
                for half in (~reported_N, reported_N)
            ]
            listed.append(Candidate(criterion, temperature, confidence_N, *curves))
    return listed


def at_most_madds(curve: Curve, target: float) -> int:
    """Returns the index of the threshold with the fewest exits and at most `target` mean multiply-adds."""
    if curve.madds[-1] > target:
        raise UserError(
            f"config.eval.madds_target = {target:,.0f} is less than the preview alone costs, {curve.madds[-1]:,.0f}; "
            "raise it."
        )
    return int(np.argmax(curve.madds <= target))


def at_most_drop(curve: Curve, drop: float) -> int:
    """Returns the index of the threshold with the most exits that loses at most `drop` of the top-1 without exits."""
    # The quotients are rounded: a drop that equals `drop` must not look larger.
    return int(np.flatnonzero(curve.top1 >= curve.top1[0] - drop - 1e-9)[-1])
