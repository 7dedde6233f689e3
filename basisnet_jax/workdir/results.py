"""Results of a finished run: `results.json`, typed, and the lines that are printed."""

import dataclasses
from typing import Any, Self

from etils import epath

from basisnet_jax.host import files
from basisnet_jax.host.records import read

FILE = "results.json"


@dataclasses.dataclass(frozen=True)
class FinalEvaluation:
    """Metrics of the last step over the evaluation split; `preview_top1` is None for a network without a preview."""

    count: int
    top1: float
    top5: float
    preview_top1: float | None
    loss: float


@dataclasses.dataclass(frozen=True)
class RunResults:
    """The content of `results.json`; the README documents it.

    Attributes:
      config: the run's, as JSON values.
      step: the last step.
      train_seconds: time in the loop, compilation, evaluation and saving included.
      skipped_steps: steps that changed nothing, as their loss or gradient was not finite.
      recompilations: of the training or evaluation step.
      images_per_second: of training steps alone, each process's first left out; None where no step was timed.
      input_wait_share: share of the timed steps' time spent waiting for data; None where no step was timed.
      eval: metrics of the last step.
      madds: multiply-adds of an image, by stage and in 'total'.
      parameters: number of the network's parameters.
      versions: of everything that the results may depend on.
    """

    config: dict[str, Any]
    step: int
    train_seconds: float
    skipped_steps: int
    recompilations: int
    images_per_second: float | None
    input_wait_share: float | None
    eval: FinalEvaluation
    madds: dict[str, int]
    parameters: int
    versions: dict[str, str]

    @classmethod
    def load(cls, folder: epath.Path) -> Self:
        """Reads the results in a run's folder. Raises OSError or ValueError, see `records.read`."""
        return read(cls, folder / FILE)

    def save(self, folder: epath.Path) -> None:
        """Writes the results into a run's folder. Raises OSError if they cannot be written."""
        files.write_json(folder / FILE, dataclasses.asdict(self))

    def summary(self) -> str:
        """Returns the lines that a finished run prints."""
        top1 = f"top-1 {self.eval.top1:.4f} (top-5 {self.eval.top5:.4f}) on {self.eval.count} images"
        if self.eval.preview_top1 is not None:
            top1 += f"; the preview alone {self.eval.preview_top1:.4f}"
        named = ((name, self.madds[name]) for name in ("preview", "synthesis", "specialist"))
        stages = " + ".join(f"{name} {madds:,}" for name, madds in named if madds)
        speed = "" if self.images_per_second is None else f", {self.images_per_second:.0f} images/s"
        return "\n".join(
            [
                top1,
                f"{self.madds['total']:,} multiply-adds an image ({stages}), {self.parameters:,} parameters",
                f"{self.step} steps in {self.train_seconds:.0f} s{speed}",
            ]
        )


def evaluation_line(step: int, epoch: int, evaluation: dict[str, float]) -> str:
    """Returns the line printed for an evaluation while a run trains."""
    preview = f", the preview alone {evaluation['preview_top1']:.4f}" if "preview_top1" in evaluation else ""
    return f"step {step:,}, epoch {epoch}: top-1 {evaluation['top1']:.4f}{preview}, loss {evaluation['loss']:.4f}"
