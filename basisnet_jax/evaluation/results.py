"""An evaluation's results: `evaluation/results.json` as dataclasses, and the lines to print."""

import dataclasses
from typing import Any, Self

from etils import epath

from basisnet_jax.host import command_line, files
from basisnet_jax.host.records import read
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
    """The half of the images for reporting, with the specialist's top-1 without early exits."""

    count: int
    top1: float


@dataclasses.dataclass(frozen=True)
class ExitPoint:
    """A threshold's figures on the half of the images for reporting."""

    threshold: float
    exit_rate: float
    top1: float
    madds: float  # mean multiply-adds of an image


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A criterion of early exits: its figures, and its points by the setting that chose each point."""

    criterion: str
    temperature: float
    chosen_mean_top1: float  # on the half for choosing
    mean_top1: float  # on the half for reporting
    points: dict[str, ExitPoint]


@dataclasses.dataclass(frozen=True)
class Best:
    """The best criterion, and its gain in mean top-1 over the largest probability at temperature 1."""

    criterion: str
    temperature: float
    mean_top1_gain: float


@dataclasses.dataclass(frozen=True)
class EarlyTermination:
    """Every criterion, the best criterion, and the rule for prediction and export as JSON values."""

    criteria: list[Criterion]
    best: Best
    rule: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class EvaluationResults:
    """The contents of `evaluation/results.json`; docs/guides/evaluation.md documents them.

    Attributes:
      config: the evaluation's config, as JSON values.
      step: the step after which the weights were saved.
      count: number of images.
      resolution: side of the images in pixels.
      specialist: the specialist's metrics.
      preview: the preview's metrics; None for a network without a preview.
      ablations: the specialist's metrics with other coefficients, by the ablation's name.
      reported_half: the half of the images for reporting.
      madds: multiply-adds of an image, by stage and in 'total'.
      versions: versions of everything that the results may depend on.
      coefficients: 'entropy' and 'wins' of each vector, and 'class_share'; None for a network without a preview.
      early_termination: results of early termination; None for a network without a preview.
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
        """Reads the results in an evaluation's folder. Raises OSError or ValueError, see `records.read`."""
        return read(cls, folder / FILE)

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
        lines += command_line.align(cells)
        if self.coefficients:
            share = self.coefficients["class_share"]["all"]
            lines.append(
                f"{share:.1%} of the coefficients' variance lies between the classes that the preview predicts"
            )
        if self.early_termination:
            lines += ["", *self._early_termination_lines(self.early_termination)]
        return "\n".join(lines)

    def _early_termination_lines(self, found: EarlyTermination) -> list[str]:
        """Returns lines on each criterion's figures and on the chosen rule."""
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
        lines += command_line.align([head, *points], left=(0, 4))
        best, chosen = found.best, ChosenRule.from_json(found.rule, FILE)
        rule, was = chosen.rule, chosen.provenance
        assert was is not None  # --mode=evaluate chose it
        assert chosen.chosen_on is not None
        assert chosen.reported_on is not None
        lines += [
            f"best on the half for choosing: {best.criterion} at temperature {best.temperature:.3f}; on the "
            f"other, mean top-1 {best.mean_top1_gain:+.4f} against the largest probability at temperature 1",
            "",
            f"the rule that predict and export use: {rule.criterion} at temperature {rule.temperature:.3f} of at "
            f"least {rule.threshold:.4f}, by {chosen.chosen_by}",
            f"chosen with {was.weights} on {was.images}",
        ]
        halves = (("chosen on", chosen.chosen_on), ("reported on", chosen.reported_on))
        return lines + command_line.align(
            [
                ("", "images", "exits", "top-1", "multiply-adds"),
                *((name, f"{x.count}", f"{x.exit_rate:.1%}", f"{x.top1:.4f}", f"{x.madds:,.0f}") for name, x in halves),
            ]
        )
