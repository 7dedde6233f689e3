"""What a finished run says of itself: `results.json`, typed, and the lines that are printed."""

import dataclasses
import json
from typing import Any, Self

from etils import epath

from basisnet_jax.host import files
from basisnet_jax.host.records import typed

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
    """What `results.json` holds; the README documents it.

    Attributes:
      config: the run's, as JSON values.
      step: the last one.
      train_seconds: in the loop, compilation, evaluation and saving included.
      skipped_steps: that changed nothing, as their loss or gradient was not finite.
      recompilations: of the training or evaluation step.
      images_per_second: of training steps alone; None where no step was timed: each process's first is not.
      input_wait_share: share of that time spent waiting for data; None likewise.
      eval: of the last step.
      madds: multiply-adds of an image, by stage and in 'total'.
      parameters: of the network.
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
        """Reads the results of a run's folder.

        Raises:
          OSError: there are none, or they cannot be read.
          ValueError: the file is not JSON, or holds something else.
        """
        content = json.loads((folder / FILE).read_text())
        try:
            return typed(cls, {**content, "eval": typed(FinalEvaluation, content["eval"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"{folder / FILE} does not hold the results of a run: {error}") from None

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
    """Returns the line that is printed of an evaluation while a run trains."""
    preview = f", the preview alone {evaluation['preview_top1']:.4f}" if "preview_top1" in evaluation else ""
    return f"step {step:,}, epoch {epoch}: top-1 {evaluation['top1']:.4f}{preview}, loss {evaluation['loss']:.4f}"
