"""Two-stage inference with an exported network: NumPy and LiteRT alone, no JAX (`pip install 'basisnet_jax[runtime]'`).

python -m basisnet_jax.runtime runs/digits/export pixels.npy
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from basisnet_jax.errors import UserError
from basisnet_jax.host import noise
from basisnet_jax.host.command_line import exit_quietly_on_broken_pipe
from basisnet_jax.serving.exit_rule import ExitRule, softmax
from basisnet_jax.serving.export import Export
from basisnet_jax.serving.tflite import LiteRTStage


class Answers(NamedTuple):
    """Answers for B images."""

    labels: np.ndarray  # int64[B]
    probabilities: np.ndarray  # float64[B], of the label, from the stage that answered
    exited_early: np.ndarray  # bool[B]: the preview answered alone
    madds: np.ndarray  # int64[B], multiply-adds


class StageMadds(Protocol):
    """Multiply-adds of an image that exits and of an image that does not."""

    @property
    def preview(self) -> int:
        """Returns the multiply-adds of the first stage."""

    @property
    def total(self) -> int:
        """Returns the multiply-adds of both stages."""


class _Madds(NamedTuple):
    preview: int
    total: int


@dataclasses.dataclass(frozen=True)
class TwoStageClassifier:
    """A trained model that runs its second stage only for the images that need it.

    Attributes:
      first_stage: uint8[b, side, side, channels] -> (preview logits [b, K], coefficients [b, L, N]); None for a network
        without a preview.
      second_stage: (the same images, coefficients) -> logits [b, K]; without a preview, images -> logits.
      rule: which images exit early.
      cost: multiply-adds of each stage.
      classes: names of the classes.
      side: of the images, in pixels.
      channels: of the images, 1 or 3.
    """

    first_stage: Callable[..., Any] | None
    second_stage: Callable[..., Any]
    rule: ExitRule
    cost: StageMadds
    classes: tuple[str, ...]
    side: int
    channels: int

    @classmethod
    def from_export(
        cls, folder: str, threshold: float | None = None, threads: int = 1, suffix: str | None = None
    ) -> Self:
        """Makes a classifier of what `--mode=export` wrote, run by LiteRT image by image.

        Args:
          folder: a run's `export/`, or a copy.
          threshold: of the largest softmax probability at which an image exits; None takes the manifest's rule.
          threads: that LiteRT uses.
          suffix: of the files, such as 'int8.tflite'; None takes the first that the manifest names.

        Raises:
          UserError: the folder is not an export or is damaged, has no such files, or has no rule and no threshold is
            given.
        """
        export = Export.open(folder)
        names, image, madds = export.stages(suffix), export.manifest.input, export.manifest.madds
        rule = export.rule(threshold, list(names.values())) if "preview" in names else ExitRule()
        classes = export.classes()
        stages = {stage: _loaded(export, name, threads) for stage, name in names.items()}
        _check_shapes(export, len(classes), stages)
        return cls(
            first_stage=stages.get("preview"),
            second_stage=stages["specialist"],
            rule=rule,
            cost=_Madds(madds["preview"], madds["total"]),
            classes=classes,
            side=image.side,
            channels=image.channels,
        )

    def classify(self, images_BxHxWxC: np.ndarray) -> Answers:
        """Classifies images; the second stage sees only images that do not exit.

        Args:
          images_BxHxWxC: uint8[B, side, side, channels] for any B.

        Raises:
          UserError: the images have another shape or dtype.
        """
        self._check_images(images_BxHxWxC)
        count = len(images_BxHxWxC)
        if not self.first_stage:
            (logits_BxK,) = self._run(self.second_stage, images_BxHxWxC)
            exits_B = np.zeros(count, bool)
        else:
            logits_BxK, coefficients_BxLxN = self._run(self.first_stage, images_BxHxWxC)
            exits_B = self.rule.exits(logits_BxK)
            if not exits_B.all():
                (logits_BxK[~exits_B],) = self._run(
                    self.second_stage, images_BxHxWxC[~exits_B], coefficients_BxLxN[~exits_B]
                )
        return Answers(
            labels=logits_BxK.argmax(axis=-1),
            probabilities=softmax(logits_BxK).max(axis=-1),
            exited_early=exits_B,
            madds=np.where(exits_B, self.cost.preview, self.cost.total),
        )

    def _check_images(self, images_BxHxWxC: np.ndarray) -> None:
        shape, dtype = (self.side, self.side, self.channels), images_BxHxWxC.dtype
        if images_BxHxWxC.shape == shape:
            raise UserError(f"one image of shape {shape} is not a batch of images; give images[None].")
        if images_BxHxWxC.shape[1:] != shape:
            raise UserError(f"images of shape {images_BxHxWxC.shape[1:]} do not fit; resize them to {shape}.")
        if dtype != np.uint8:
            how = "(255 * images).round().astype(np.uint8) if they go from 0 to 1, else images.astype(np.uint8)"
            raise UserError(f"pixels of type {dtype} do not fit; give uint8 from 0 to 255: {how}.")

    def _run(self, function: Callable[..., Any], *arrays_Bx: np.ndarray) -> list[np.ndarray]:
        """Returns a stage's outputs for all B images."""
        return list(function(*arrays_Bx))


def _loaded(export: Export, name: str, threads: int) -> LiteRTStage:
    content = export.read(name)
    try:
        return LiteRTStage(content, threads)
    except (ValueError, RuntimeError) as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise UserError(f"{export.folder / name} cannot be run by LiteRT ({reason}); export again.") from None


def _check_shapes(export: Export, classes: int, stages: Mapping[str, LiteRTStage]) -> None:
    """Raises UserError if a file's inputs and outputs are not what the manifest and the other file say."""
    taken = export.manifest.input
    image: dict[str, tuple[int, ...]] = {"image": (taken.batch, taken.side, taken.side, taken.channels)}
    logits: dict[str, tuple[int, ...]] = {"logits": (taken.batch, classes)}
    coefficients: dict[str, tuple[int, ...]] = {}
    for name, stage in stages.items():
        if name == "preview":
            vectors = stage.outputs.get("coefficients", ())
            coefficients = {"coefficients": (taken.batch, *vectors[1:])}
            expected = image, {**logits, **coefficients}
        else:
            expected = {**image, **coefficients}, logits
        if (stage.inputs, stage.outputs) != expected:
            raise UserError(
                f"the {name} in {export.folder} has inputs {stage.inputs} and outputs {stage.outputs}, but the "
                f"manifest and labels.txt say {expected[0]} and {expected[1]}; export again."
            )


def _pixels(path: str) -> np.ndarray:
    """Maps a .npy file, so that memory holds only the pixels in use. Raises UserError if it is not a .npy file."""
    try:
        images = np.load(path, mmap_mode="r")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from None
    except (ValueError, EOFError):
        images = None
    if not isinstance(images, np.ndarray):
        raise UserError(
            f"{path} is not a .npy file of pixels; classify image files with `python -m basisnet_jax.main "
            f"--mode=predict --workdir=EXPORT --images={path}`, or make a .npy file with np.save "
            "(see docs/guides/deploy.md)."
        )
    return images


def main(arguments: list[str] | None = None) -> int:
    """Prints one line for each image: class, probability, the stage that answered. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m basisnet_jax.runtime", description="Classify pixels in two stages."
    )
    parser.add_argument("export", help="the folder that --mode=export wrote")
    parser.add_argument("pixels", help="a .npy file, uint8[B, side, side, channels]")
    parser.add_argument(
        "--threshold", type=float, help="threshold of the largest probability; default: the manifest's rule"
    )
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    try:
        classifier = TwoStageClassifier.from_export(given.export, given.threshold, given.threads)
        for label, probability, early, _ in zip(*classifier.classify(_pixels(given.pixels)), strict=True):
            print(f"{classifier.classes[label]}  {probability:.4f}  {'preview' if early else 'specialist'}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    noise.filter_native_stderr()
    with exit_quietly_on_broken_pipe():
        sys.exit(main())
