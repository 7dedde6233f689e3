"""The two-stage classifier: its second stage sees only images that need it. NumPy alone, and LiteRT for files."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from basisnet_jax.errors import UserError
from basisnet_jax.host.command_line import first_line
from basisnet_jax.images.crop import WHOLE_IMAGE, EvalCrop
from basisnet_jax.serving.exit_curve import StageMadds
from basisnet_jax.serving.exit_rule import ExitRule, rule_without_preview, softmax
from basisnet_jax.serving.export import Export
from basisnet_jax.serving.isolated import IsolatedStage
from basisnet_jax.serving.tflite import LiteRTStage


class Answers(NamedTuple):
    """Answers for B images; with `top_k`, the labels and their probabilities are [B, k], the most probable first."""

    labels: np.ndarray  # int64[B]
    probabilities: np.ndarray  # float64[B], of the label, from the stage that answered
    exited_early: np.ndarray  # bool[B]: the preview answered alone
    madds: np.ndarray  # int64[B], multiply-adds


class Previewed(NamedTuple):
    """What the first stage found for B images."""

    logits_BxK: np.ndarray | None  # None for a network without a preview
    coefficients_BxLxN: np.ndarray | None
    exits_B: np.ndarray  # bool[B]: the preview answers alone


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
      crop: the part of an image file that is classified.

    Calls from several threads are right, but wait for each other in LiteRT; for more throughput, open a classifier for
    each thread or process, or use a `TwoStagePipeline`.
    """

    first_stage: Callable[..., Any] | None
    second_stage: Callable[..., Any]
    rule: ExitRule
    cost: StageMadds
    classes: tuple[str, ...]
    side: int
    channels: int
    crop: EvalCrop = WHOLE_IMAGE

    @classmethod
    def from_export(
        cls,
        folder: str,
        threshold: float | None = None,
        threads: int = 1,
        suffix: str | None = None,
        isolated: bool = False,
    ) -> Self:
        """Makes a classifier of what `--mode=export` wrote, run by LiteRT image by image.

        Args:
          folder: a run's `export/`, or a copy.
          threshold: of the largest softmax probability at which an image exits; None takes the manifest's rule.
          threads: that LiteRT uses.
          suffix: of the files, such as 'int8.tflite'; None takes the first that the manifest names.
          isolated: run LiteRT in processes of its own, for an export of a stranger: see `isolated.IsolatedStage`.

        Raises:
          UserError: the folder is not an export or is damaged, has no such files, has no rule and no threshold is
            given, or a threshold is given but no preview can answer.
        """
        export = Export.open(folder)
        names, image, madds = export.stages(suffix), export.manifest.input, export.manifest.madds
        rule = export.rule(threshold, list(names.values())) if "preview" in names else rule_without_preview(threshold)
        classes = export.classes()
        stages = {stage: _loaded(export, name, threads, isolated) for stage, name in names.items()}
        _check_shapes(export, len(classes), stages)
        return cls(
            first_stage=stages.get("preview"),
            second_stage=stages["specialist"],
            rule=rule,
            cost=_Madds(madds["preview"], madds["total"]),
            classes=classes,
            side=image.side,
            channels=image.channels,
            crop=export.crop(),
        )

    def classify(self, images_BxHxWxC: np.ndarray, top_k: int | None = None) -> Answers:
        """Classifies images; the second stage sees only images that do not exit.

        Args:
          images_BxHxWxC: uint8[B, side, side, channels] for any B.
          top_k: how many classes to return for each image; None returns the best without an axis for it.

        Raises:
          UserError: the images have another shape or dtype, or there are fewer classes than `top_k`.
        """
        return self.specialist_stage(images_BxHxWxC, self.preview_stage(images_BxHxWxC), top_k)

    def preview_stage(self, images_BxHxWxC: np.ndarray) -> Previewed:
        """Runs the preview on images, as `classify` does first; errors are those of `classify`."""
        self._check_images(images_BxHxWxC)
        if not self.first_stage:
            return Previewed(None, None, np.zeros(len(images_BxHxWxC), bool))
        logits_BxK, coefficients_BxLxN = self._run(self.first_stage, images_BxHxWxC)
        return Previewed(logits_BxK, coefficients_BxLxN, self.rule.exits(logits_BxK))

    def specialist_stage(self, images_BxHxWxC: np.ndarray, previewed: Previewed, top_k: int | None = None) -> Answers:
        """Runs the specialist on the images that do not exit, and answers, as `classify` does second."""
        logits_BxK, coefficients_BxLxN, exits_B = previewed
        if logits_BxK is None or coefficients_BxLxN is None:
            (logits_BxK,) = self._run(self.second_stage, images_BxHxWxC)
        elif not exits_B.all():
            logits_BxK = logits_BxK.copy()
            (logits_BxK[~exits_B],) = self._run(
                self.second_stage, images_BxHxWxC[~exits_B], coefficients_BxLxN[~exits_B]
            )
        probability_BxK = softmax(logits_BxK)
        labels_Bxk = top_classes(logits_BxK, 1 if top_k is None else top_k)
        probabilities_Bxk = np.take_along_axis(probability_BxK, labels_Bxk, axis=-1)
        return Answers(
            labels=labels_Bxk[:, 0] if top_k is None else labels_Bxk,
            probabilities=probabilities_Bxk[:, 0] if top_k is None else probabilities_Bxk,
            exited_early=exits_B,
            madds=np.where(exits_B, self.cost.preview, self.cost.total),
        )

    def warm_up(self) -> None:
        """Runs both stages on a black image: the first call of LiteRT and of JAX takes longer than those after it."""
        black_1xHxWxC = np.zeros((1, self.side, self.side, self.channels), np.uint8)
        previewed = self.preview_stage(black_1xHxWxC)
        self.specialist_stage(black_1xHxWxC, previewed._replace(exits_B=np.array([False])))

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


def top_classes(logits_BxK: np.ndarray, top_k: int) -> np.ndarray:
    """Returns int64[B, k]: the classes of the largest logits, largest first; of equal ones, the first class.

    Raises:
      UserError: there are fewer classes.
    """
    if not 1 <= top_k <= logits_BxK.shape[-1]:
        raise UserError(f"top_k = {top_k} is not in 1 to {logits_BxK.shape[-1]}, the number of classes.")
    if top_k == 1:
        return logits_BxK.argmax(axis=-1)[:, None]
    return np.argsort(-logits_BxK, axis=-1, kind="stable")[:, :top_k]


def _loaded(export: Export, name: str, threads: int, isolated: bool) -> LiteRTStage | IsolatedStage:
    content = export.read(name)
    try:
        return IsolatedStage(content, threads) if isolated else LiteRTStage(content, threads)
    except (ValueError, RuntimeError, TypeError) as error:
        raise UserError(
            f"{export.folder / name} cannot be run by LiteRT ({first_line(error)}); export again."
        ) from None


def _check_shapes(export: Export, classes: int, stages: Mapping[str, LiteRTStage | IsolatedStage]) -> None:
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
