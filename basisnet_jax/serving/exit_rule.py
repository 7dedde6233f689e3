"""The exit rule: when the preview is sure enough to answer alone, and how the rule was chosen. NumPy alone."""

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from basisnet_jax.errors import UserError
from basisnet_jax.host.records import read_object, typed

_LOG = logging.getLogger(__name__)

NEVER = 2.0  # a threshold that no confidence reaches
FILE = "exit_rule.json"  # in the folder that --mode=evaluate writes


def softmax(logits_BxK: np.ndarray) -> np.ndarray:
    """Returns float64[B, K]: the probabilities."""
    exponentials_BxK = np.exp(logits_BxK.astype(np.float64) - logits_BxK.max(axis=-1, keepdims=True))
    return exponentials_BxK / exponentials_BxK.sum(axis=-1, keepdims=True)


def _margin(probability_BxK: np.ndarray) -> np.ndarray:
    second_first_Bx2 = np.partition(probability_BxK, -2, axis=-1)[:, -2:]
    return second_first_Bx2[:, 1] - second_first_Bx2[:, 0]


def _low_entropy(probability_BxK: np.ndarray) -> np.ndarray:
    logarithm_BxK = np.log(np.where(probability_BxK > 0, probability_BxK, 1.0))
    return 1.0 + (probability_BxK * logarithm_BxK).sum(axis=-1) / np.log(probability_BxK.shape[-1])


# {name: probabilities_BxK -> confidence_B in [0, 1], larger where the preview is surer}, for K of at least 2
CRITERIA: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "probability": lambda probability_BxK: probability_BxK.max(axis=-1),
    "margin": _margin,  # the largest probability minus the second
    "entropy": _low_entropy,  # 1 - entropy / log K
}


@dataclasses.dataclass(frozen=True)
class ExitRule:
    """A rule: the preview answers alone where its confidence is at least the threshold."""

    criterion: str = "probability"  # one of CRITERIA
    temperature: float = 1.0  # divides the preview's logits
    threshold: float = NEVER

    def confidence(self, preview_logits_BxK: np.ndarray) -> np.ndarray:
        """Returns float64[B] in [0, 1]: the preview's confidence; with a single class it is 1."""
        if preview_logits_BxK.shape[-1] == 1:
            return np.ones(len(preview_logits_BxK))
        return CRITERIA[self.criterion](softmax(preview_logits_BxK.astype(np.float64) / self.temperature))

    def exits(self, preview_logits_BxK: np.ndarray) -> np.ndarray:
        """Returns bool[B]: which images the preview answers alone."""
        return self.confidence(preview_logits_BxK) >= self.threshold


def threshold_rule(threshold: float) -> ExitRule:
    """Returns the rule for a user's threshold of the largest probability.

    Raises:
      UserError: the threshold is neither a probability nor NEVER.
    """
    if not (0 <= threshold <= 1 or threshold == NEVER):
        raise UserError(
            f"--threshold={threshold:g} is not a probability; give a number from 0 to 1, as in --threshold=0.9, or "
            f"{NEVER:g} to let no image exit early."
        )
    return ExitRule(threshold=threshold)


def rule_without_preview(threshold: float | None) -> ExitRule:
    """Returns the rule of a network whose preview cannot answer, or that has none: no image exits.

    Raises:
      UserError: a threshold is given at which images would exit.
    """
    if threshold not in (None, NEVER):
        raise UserError(
            f"--threshold={threshold:g} is for a network whose preview can answer alone, and this one has none; leave "
            "the threshold out, or export a run that has a preview with config.export.early_exit=True."
        )
    return ExitRule()


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The weights and the images that a rule was chosen with."""

    step: int  # of the checkpoint
    checkpoint: str  # config.eval.checkpoint: 'best', 'newest' or a step
    ema: bool  # config.eval.ema: the moving averages, or the parameters themselves
    resolution: int  # side of the specialist's images, in pixels
    data: str  # the data set's name for people
    split: str  # config.data.eval_split
    crop: str  # config.data.eval_crop
    padding: int  # config.data.eval_padding; 0 where the crop is not 'central'
    exif_orientation: bool  # config.data.exif_orientation: photographs are turned upright first
    files: dict[str, str] = dataclasses.field(default_factory=dict)  # {an export's file: its sha256}

    @property
    def weights(self) -> str:
        """Returns words that say which weights these are."""
        averages = "moving averages" if self.ema else "parameters"
        return f"the {averages} of step {self.step} ({self.checkpoint}) at {self.resolution} pixels"

    @property
    def images(self) -> str:
        """Returns words that say which images these are."""
        padding = f", padding {self.padding}" if self.padding else ""
        turned = "" if self.exif_orientation else ", EXIF orientation ignored"
        return f"{self.data} {self.split} (crop {self.crop}{padding}{turned})"


@dataclasses.dataclass(frozen=True)
class Point:
    """Results of a rule on one half of the images."""

    count: int  # images
    exit_rate: float
    top1: float
    madds: float  # of an image, on average


@dataclasses.dataclass(frozen=True)
class ChosenRule:
    """A rule and how it was chosen.

    Attributes:
      rule: the rule.
      chosen_by: 'madds_target' or 'max_accuracy_drop' with its value; 'hand' for a threshold that a user gave.
      provenance: weights and images that the rule was chosen with; None for a threshold that a user gave.
      chosen_on: the rule's results on the half of the images that it was chosen on.
      reported_on: the rule's results on the other half.
    """

    rule: ExitRule
    chosen_by: str = "hand"
    provenance: Provenance | None = None
    chosen_on: Point | None = None
    reported_on: Point | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values: the rule's own fields, then the others by name."""
        content = dataclasses.asdict(self)
        return {**content.pop("rule"), **content}

    @classmethod
    def from_json(cls, content: Any, where: object) -> Self:
        """Makes a rule from what `to_json` returned.

        Args:
          content: JSON values.
          where: names the file in an error.

        Raises:
          UserError: the content is not a rule.
        """
        try:
            rule = ExitRule(*(content[field.name] for field in dataclasses.fields(ExitRule)))
            points = {name: content[name] and typed(Point, content[name]) for name in ("chosen_on", "reported_on")}
            provenance = content["provenance"] and typed(Provenance, content["provenance"])
            if rule.criterion not in CRITERIA or not 0 < rule.temperature < math.inf:
                raise ValueError
            threshold_rule(rule.threshold)
            return cls(rule, str(content["chosen_by"]), provenance, **points)
        except (KeyError, TypeError, ValueError, UserError):
            raise UserError(f"{where} has no exit rule that can be read; run --mode=evaluate again.") from None

    @classmethod
    def load(cls, folder: Any) -> Self:
        """Reads the rule that --mode=evaluate wrote into a run's `evaluation/`.

        Raises:
          UserError: there is no rule, or it cannot be read.
        """
        path = folder / FILE
        if not path.exists():
            raise UserError(
                f"there is no {path}, which has the threshold; run --mode=evaluate first, or give --threshold."
            )
        try:
            content = read_object(path)
        except ValueError:
            content = None
        return cls.from_json(content, path)

    def check_fits(self, now: Provenance, where: object) -> None:
        """Checks that the rule was chosen with these weights, and logs a warning if it was chosen on other images.

        Args:
          now: the weights and images that the rule is about to be used with.
          where: names the rule's file.

        Raises:
          UserError: the rule was chosen with other weights, or at another resolution.
        """
        was = self.provenance
        if was is None:
            return
        if (was.step, was.ema, was.resolution) != (now.step, now.ema, now.resolution):
            raise UserError(
                f"the exit rule in {where} was chosen with {was.weights}, but {now.weights} are used now; run "
                "--mode=evaluate with the current settings, or give --threshold."
            )
        if was.images != now.images:
            _LOG.warning(
                "the exit rule in %s was chosen on %s, but the config names %s; run --mode=evaluate with the current "
                "settings to choose it there.",
                where,
                was.images,
                now.images,
            )
