"""What an evaluation finds: `evaluation/results.json`, typed, and the lines that are printed."""

import dataclasses
import json
from typing import Any, Self

from etils import epath

from basisnet_jax.host import files, tables
from basisnet_jax.host.records import typed
from basisnet_jax.serving.exit_rule import ChosenRule

FILE = "results.json"


@dataclasses.dataclass(frozen=True)
class StageMetrics:
    """Metrics of one stage's logits over all images."""

    top1: float
    top5: float
    loss: float  # cross entropy
    ece: float  # expected calibration error


@dataclasses.dataclass(frozen=True)
class Half:
    """The half of the images that figures are reported on, with no early exit."""

    count: int
    top1: float


@dataclasses.dataclass(frozen=True)
class ExitPoint:
    """What a threshold gives on the half that is reported on."""

    threshold: float
    exit_rate: float
    top1: float
    madds: float  # on average


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A criterion of early exits: what it gives, and its points by the setting that chose them."""

    criterion: str
    temperature: float
    chosen_mean_top1: float  # on the half that is chosen on
    mean_top1: float  # on the other
    points: dict[str, ExitPoint]


@dataclasses.dataclass(frozen=True)
class Best:
    """The best criterion; its gain in mean top-1 is over the largest probability at temperature 1."""

    criterion: str
    temperature: float
    mean_top1_gain: float


@dataclasses.dataclass(frozen=True)
class EarlyTermination:
    """Every criterion, the best of them, and the rule that prediction and export take, as JSON values."""

    criteria: list[Criterion]
    best: Best
    rule: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class EvaluationResults:
    """What `evaluation/results.json` holds; docs/evaluation.md documents it.

    Attributes:
      config: of the evaluation, as JSON values.
      step: after which the weights were saved.
      count: images.
      resolution: their side in pixels.
      specialist: its metrics.
      preview: its metrics; None for a network without one.
      ablations: the specialist's metrics with other coefficients, by the ablation's name.
      reported_half: the half that figures are reported on.
      madds: multiply-adds of an image, by stage and in 'total'.
      versions: of everything that the results may depend on.
      coefficients: 'entropy' and 'wins' of each vector, and 'class_share'; None for a network without a preview.
      early_termination: None for a network without a preview.
    """

    config: dict[str, Any]
    step: int
    count: int
    resolution: int
    specialist: StageMetrics
    preview: StageMetrics | None
    ablations: dict[str, StageMetrics]
    reported_half: Half
    madds: dict[str, int]
    versions: dict[str, str]
    coefficients: dict[str, Any] | None
    early_termination: EarlyTermination | None

    @classmethod
    def load(cls, folder: epath.Path) -> Self:
        """Reads the results in an evaluation's folder.

        Raises:
          OSError: there are none, or they cannot be read.
          ValueError: the file is not JSON, or holds something else.
        """
        try:
            return typed(cls, json.loads((folder / FILE).read_text()))
        except TypeError as error:
            raise ValueError(f"{folder / FILE} does not hold the results of an evaluation: {error}") from None

    def save(self, folder: epath.Path) -> None:
        """Writes the results into an evaluation's folder. Raises OSError if they cannot be written."""
        files.write_json(folder / FILE, dataclasses.asdict(self))

    def summary(self) -> str:
        """Returns the lines that a finished evaluation prints."""
        rows = {"specialist": self.specialist, "preview": self.preview, **self.ablations}
        lines = [f"step {self.step}, {self.count} images at {self.resolution} x {self.resolution}"]
        cells: list[tuple[str, ...]] = [("", "top-1", "top-5", "loss", "ECE")]
        cells += [
            (name, *(f"{value:.4f}" for value in (row.top1, row.top5, row.loss, row.ece)))
            for name, row in rows.items()
            if row
        ]
        lines += tables.align(cells)
        if self.coefficients:
            share = self.coefficients["class_share"]["all"]
            lines.append(f"{share:.1%} of the coefficients' variance lies between the classes that the preview guesses")
        if self.early_termination:
            lines += ["", *self._early_termination_lines(self.early_termination)]
        return "\n".join(lines)

    def _early_termination_lines(self, found: EarlyTermination) -> list[str]:
        """Says what each criterion gives, and which rule was chosen."""
        half = self.reported_half
        lines = [
            f"early termination, chosen on {self.count - half.count} images; exits, top-1 and multiply-adds on the "
            f"other {half.count} (top-1 {half.top1:.4f} with none, at {self.madds['total']:,} multiply-adds):"
        ]
        head = ("criterion", "temperature", "mean top-1: chosen on", "other", "by", "exits", "top-1", "multiply-adds")
        points = [
            (
                row.criterion,
                f"{row.temperature:.3f}",
                f"{row.chosen_mean_top1:.4f}",
                f"{row.mean_top1:.4f}",
                name,
                f"{point.exit_rate:.1%}",
                f"{point.top1:.4f}",
                f"{point.madds:,.0f}",
            )
            for row in found.criteria
            for name, point in row.points.items()
        ]
        lines += tables.align([head, *points], left=(0, 4))
        best, chosen = found.best, ChosenRule.from_json(found.rule, FILE)
        rule, was = chosen.rule, chosen.provenance
        assert was is not None  # --mode=evaluate chose it
        assert chosen.chosen_on is not None
        assert chosen.reported_on is not None
        lines += [
            f"best on the half that is chosen on: {best.criterion} at temperature {best.temperature:.3f}; on the "
            f"other, mean top-1 {best.mean_top1_gain:+.4f} against the largest probability at temperature 1",
            "",
            f"the rule that predict and export take: {rule.criterion} at temperature {rule.temperature:.3f} of at "
            f"least {rule.threshold:.4f}, by {chosen.chosen_by}",
            f"chosen with {was.weights} on {was.images}",
        ]
        halves = (("chosen on", chosen.chosen_on), ("reported on", chosen.reported_on))
        return lines + tables.align(
            [
                ("", "images", "exits", "top-1", "multiply-adds"),
                *((name, f"{x.count}", f"{x.exit_rate:.1%}", f"{x.top1:.4f}", f"{x.madds:,.0f}") for name, x in halves),
            ]
        )
