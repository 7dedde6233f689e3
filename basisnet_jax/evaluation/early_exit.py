"""Early termination: when the preview is sure enough, and what that saves and costs. NumPy, in float64.

The paper's criterion is not known to us; `exit_rule.py` has three. What a threshold gives is simulated from the logits
of both stages, and is what `predict.TwoStageClassifier` does with it.
"""

import dataclasses

import numpy as np

from basisnet_jax.errors import UserError
from basisnet_jax.evaluation.calibration import fit_temperature
from basisnet_jax.models.cost import Cost
from basisnet_jax.serving.exit_rule import CRITERIA, NEVER, ChosenRule, ExitRule, Point, Provenance


@dataclasses.dataclass(frozen=True)
class Curve:
    """What each of T thresholds gives, from the highest to the lowest: ever more images exit."""

    threshold: np.ndarray
    exit_rate: np.ndarray
    top1: np.ndarray
    madds: np.ndarray  # an image, on average

    def point(self, index: int) -> dict[str, float]:
        """One threshold's figures by name."""
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
    """The curve of images of which both stages' answers are known.

    Args:
      confidence_B: the preview's, by some criterion.
      preview_correct_B: 1.0 where the preview is right.
      correct_B: 1.0 where the specialist is right.
      cost: of an image.
      threshold_T: from the highest to the lowest.
    """
    order = np.argsort(-confidence_B, kind="stable")
    exited_T = np.searchsorted(-confidence_B[order], -threshold_T, side="right")
    gained = np.concatenate([[0.0], np.cumsum((preview_correct_B - correct_B)[order])])
    exit_rate = exited_T / len(order)
    return Curve(threshold_T, exit_rate, (correct_B.sum() + gained[exited_T]) / len(order), cost.average(exit_rate))


def all_thresholds(confidence_B: np.ndarray) -> np.ndarray:
    """Every threshold that tells these images apart differently, from the highest to the lowest.

    They lie midway between neighbours, so that the last bit of a confidence decides nothing.
    """
    values = np.unique(confidence_B)[::-1]
    return np.concatenate([[NEVER], (values[1:] + values[:-1]) / 2, [0.0]])


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A criterion and a temperature, with their curve at the same thresholds on either half of the images."""

    criterion: str
    temperature: float
    chosen_on: Curve
    reported_on: Curve

    def rule(self, index: int) -> ExitRule:
        """The rule of one threshold."""
        return ExitRule(self.criterion, self.temperature, float(self.chosen_on.threshold[index]))

    def choice(self, index: int, chosen_by: str, images: int, provenance: Provenance) -> ChosenRule:
        """Returns the rule of one threshold with where it comes from.

        Args:
          index: of the threshold.
          chosen_by: the setting that it was chosen by.
          images: of both halves.
          provenance: what it was chosen with.
        """
        counts = images // 2, images - images // 2  # as `reported_half` divides them
        points = [
            Point(count, float(curve.exit_rate[index]), float(curve.top1[index]), float(curve.madds[index]))
            for count, curve in zip(counts, (self.chosen_on, self.reported_on), strict=True)
        ]
        return ChosenRule(self.rule(index), chosen_by, provenance, *points)


def reported_half(count: int) -> np.ndarray:
    """bool[count]: the half of the images that figures are reported on; what is chosen is chosen on the others.

    An image's half is a function of its index in the split and of the split's size, drawn once and for all: neither
    the devices nor the batches matter, and a split that is sorted by class is divided as well as any.
    """
    if count < 2:
        raise UserError(f"the evaluation split holds {count} image; one half is to choose on and one to report, so 2.")
    return np.random.default_rng(0).permutation(count) >= count // 2


def candidates(
    preview_logits_NxK: np.ndarray,
    labels_N: np.ndarray,
    preview_correct_N: np.ndarray,
    correct_N: np.ndarray,
    cost: Cost,
) -> list[Candidate]:
    """Every criterion at temperature 1 and at the one fitted on the half that is chosen on; arguments over all images.

    The first is the plain one: the largest probability at temperature 1.
    """
    reported_N = reported_half(len(labels_N))
    fitted = fit_temperature(preview_logits_NxK[~reported_N], labels_N[~reported_N])
    found = []
    for temperature in (1.0, fitted):
        for criterion in CRITERIA:
            confidence_N = ExitRule(criterion, temperature).confidence(preview_logits_NxK)
            thresholds = all_thresholds(confidence_N[~reported_N])
            curves = [
                simulate(confidence_N[half], preview_correct_N[half], correct_N[half], cost, thresholds)
                for half in (~reported_N, reported_N)
            ]
            found.append(Candidate(criterion, temperature, *curves))
    return found


def at_most_madds(curve: Curve, target: float) -> int:
    """Index of the threshold that lets the fewest images exit for an average of at most `target` multiply-adds."""
    if curve.madds[-1] > target:
        raise UserError(
            f"config.eval.madds_target = {target:,.0f} is less than the preview alone costs, {curve.madds[-1]:,.0f}; "
            "give more."
        )
    return int(np.argmax(curve.madds <= target))


def at_most_drop(curve: Curve, drop: float) -> int:
    """Index of the threshold that lets the most images exit for at most `drop` less top-1 than with none."""
    # The quotients are rounded: a drop that equals the allowed one must not look larger.
    return int(np.flatnonzero(curve.top1 >= curve.top1[0] - drop - 1e-9)[-1])
