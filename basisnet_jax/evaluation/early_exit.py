"""Early termination by several criteria, each with its curves. NumPy, in float64.

The paper's criterion is unknown to us; `exit_rule.py` has three.
"""

import dataclasses

import numpy as np

from basisnet_jax.evaluation.calibration import fit_temperature
from basisnet_jax.serving.exit_curve import Curve, StageMadds, all_thresholds, reported_half, simulate
from basisnet_jax.serving.exit_rule import CRITERIA, ChosenRule, ExitRule, Point, Provenance


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


def candidates(
    preview_logits_NxK: np.ndarray,
    labels_N: np.ndarray,
    preview_correct_N: np.ndarray,
    correct_N: np.ndarray,
    cost: StageMadds,
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
