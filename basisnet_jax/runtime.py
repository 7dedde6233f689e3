"""Two-stage inference with an exported network: NumPy and LiteRT alone, no JAX (`pip install 'basisnet_jax[runtime]'`).

    python -m basisnet_jax.runtime runs/digits/export pixels.npy

What decides between the stages stands here, too: training's side of the framework uses the same.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from basisnet_jax import noise
from basisnet_jax.errors import UserError
from basisnet_jax.output import ending_with_its_reader

NEVER = 2.0  # a threshold that no confidence reaches
SIGNATURE = "serving_default"  # of a .tflite file; its inputs and outputs have names there


def softmax(logits_BxK: np.ndarray) -> np.ndarray:
    """float64[B, K]."""
    exponentials_BxK = np.exp(logits_BxK.astype(np.float64) - logits_BxK.max(axis=-1, keepdims=True))
    return exponentials_BxK / exponentials_BxK.sum(axis=-1, keepdims=True)


def _margin(probability_BxK: np.ndarray) -> np.ndarray:
    second_first_Bx2 = np.partition(probability_BxK, -2, axis=-1)[:, -2:]
    return second_first_Bx2[:, 1] - second_first_Bx2[:, 0]


def _low_entropy(probability_BxK: np.ndarray) -> np.ndarray:
    logarithm_BxK = np.log(np.where(probability_BxK > 0, probability_BxK, 1.0))
    return 1.0 + (probability_BxK * logarithm_BxK).sum(axis=-1) / np.log(probability_BxK.shape[-1])


# {name: probabilities_BxK -> confidence_B in [0, 1], larger where the preview is surer}
CRITERIA: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "probability": lambda probability_BxK: probability_BxK.max(axis=-1),
    "margin": _margin,  # the largest probability less the second
    "entropy": _low_entropy,  # 1 - entropy / log K
}


@dataclasses.dataclass(frozen=True)
class ExitRule:
    """The preview answers alone where its confidence is at least the threshold."""

    criterion: str = "probability"  # one of CRITERIA
    temperature: float = 1.0  # that the preview's logits are divided by
    threshold: float = NEVER

    def confidence(self, preview_logits_BxK: np.ndarray) -> np.ndarray:
        """float64[B] in [0, 1]."""
        return CRITERIA[self.criterion](softmax(preview_logits_BxK.astype(np.float64) / self.temperature))

    def exits(self, preview_logits_BxK: np.ndarray) -> np.ndarray:
        """bool[B]."""
        return self.confidence(preview_logits_BxK) >= self.threshold


class Answers(NamedTuple):
    """What is said of each of B images."""

    labels: np.ndarray  # int64[B]
    probabilities: np.ndarray  # float64[B], of the label, by the stage that answered
    exited_early: np.ndarray  # bool[B]: the preview answered alone
    madds: np.ndarray  # int64[B]


class StageMadds(Protocol):
    """Multiply-adds of an image that exits, and of one that does not."""

    @property
    def preview(self) -> int:
        """The first stage's."""

    @property
    def total(self) -> int:
        """Both stages'."""


class _Madds(NamedTuple):
    preview: int
    total: int


@dataclasses.dataclass(frozen=True)
class TwoStageClassifier:
    """A trained model that runs no more of itself than each image needs.

    Attributes:
      first_stage: uint8[b, side, side, channels] -> (preview logits [b, K], coefficients [b, L, N]); None for a network
        without a preview.
      second_stage: (the same images, coefficients) -> logits [b, K]; without a preview, images -> logits.
      rule: which images exit early.
      cost: multiply-adds of each stage.
      classes: their names.
      side: of the images, in pixels.
      channels: 1 or 3.
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
        """What `--mode=export` wrote, run by LiteRT, image by image.

        Args:
          folder: a run's `export/`, or a copy.
          threshold: of the largest softmax probability at which an image exits; None takes the manifest's rule.
          threads: of LiteRT.
          suffix: of its files, such as 'int8.tflite'; None is the first that the manifest names.

        Raises:
          UserError: no export, none with such files, or one without a rule and no threshold.
        """
        root = pathlib.Path(folder).expanduser()
        if not (root / "manifest.json").exists():
            raise UserError(
                f"{root} has no manifest.json, so it is no export; give the folder that --mode=export wrote."
            )
        manifest = json.loads((root / "manifest.json").read_text())
        files, rule = manifest["files"], manifest["rule"]
        kinds = [name.partition(".")[2] for name in files if name.endswith("tflite")]
        suffix = suffix or next(iter(kinds), "tflite")
        first, second = (f"{stage}.{suffix}" for stage in ("preview", "specialist"))
        if second not in files:
            raise UserError(f"{root} has no {second}; it has {', '.join(files)}.")
        if first not in files:
            rule = dataclasses.asdict(ExitRule())
        elif threshold is not None:
            rule = dataclasses.asdict(ExitRule(threshold=threshold))
        elif rule is None:
            raise UserError(
                f"the export in {root} knows no threshold; give one, or run --mode=evaluate and export again."
            )
        return cls(
            first_stage=load_tflite((root / first).read_bytes(), threads) if first in files else None,
            second_stage=load_tflite((root / second).read_bytes(), threads),
            rule=ExitRule(**rule),
            cost=_Madds(manifest["madds"]["preview"], manifest["madds"]["total"]),
            classes=tuple((root / "labels.txt").read_text().splitlines()),
            side=manifest["input"]["side"],
            channels=manifest["input"]["channels"],
        )

    def classify(self, images_BxHxWxC: np.ndarray) -> Answers:
        """Classifies uint8[B, side, side, channels] for any B. Raises UserError for images of another shape."""
        count, shape = len(images_BxHxWxC), (self.side, self.side, self.channels)
        if images_BxHxWxC.shape[1:] != shape:
            raise UserError(f"images of shape {images_BxHxWxC.shape[1:]} do not fit; resize them to {shape}.")
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

    def _run(self, function: Callable[..., Any], *arrays_Bx: np.ndarray) -> list[np.ndarray]:
        """A stage's outputs for all B."""
        return list(function(*arrays_Bx))


def load_tflite(content: bytes, threads: int = 1) -> Callable[..., list[np.ndarray]]:
    """A stage's .tflite file as a function of arrays_Bx for any B: [logits, and of a preview coefficients].

    For one caller at a time. Raises UserError if LiteRT is not installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise UserError("LiteRT is not installed; run pip install 'basisnet_jax[runtime]'.") from None

    runner = Interpreter(model_content=content, num_threads=threads).get_signature_runner(SIGNATURE)
    shapes = {name: detail["shape"] for name, detail in runner.get_input_details().items()}
    names = [name for name in ("logits", "coefficients") if name in runner.get_output_details()]

    def run(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = runner(**feed)
        return [found[name] for name in names]

    return in_pieces(run, shapes)


def in_pieces(
    run: Callable[[dict[str, np.ndarray]], list[np.ndarray]], shapes: Mapping[str, Sequence[int]]
) -> Callable[..., list[np.ndarray]]:
    """What runs float32 arrays by name, of a static batch, as a function of arrays_Bx for any B.

    Args:
      run: gives the outputs of one batch.
      shapes: of its inputs, 'image' and perhaps 'coefficients'; the last batch is filled up with zeros.
    """
    names = [name for name in ("image", "coefficients") if name in shapes]
    size = int(shapes["image"][0])

    def function(*arrays_Bx: np.ndarray) -> list[np.ndarray]:
        count = len(arrays_Bx[0])
        pieces = []
        for start in range(0, max(count, 1), size):
            feed = {name: np.zeros(shapes[name], np.float32) for name in names}
            for name, array_Bx in zip(names, arrays_Bx, strict=True):
                piece = array_Bx[start : start + size]
                feed[name][: len(piece)] = piece
            pieces.append(run(feed))
        return [np.concatenate(piece)[:count] for piece in zip(*pieces, strict=True)]

    return function


def main(arguments: list[str] | None = None) -> int:
    """Prints a line an image: class, probability, the stage that answered. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m basisnet_jax.runtime", description="Classify pixels in two stages."
    )
    parser.add_argument("export", help="the folder that --mode=export wrote")
    parser.add_argument("pixels", help="a .npy file, uint8[B, side, side, channels]")
    parser.add_argument("--threshold", type=float, help="of the largest probability; default: the manifest's rule")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    try:
        classifier = TwoStageClassifier.from_export(given.export, given.threshold, given.threads)
        try:
            images = np.load(given.pixels)
        except (OSError, ValueError) as error:
            raise UserError(f"{given.pixels} cannot be read as a .npy file ({error}).") from None
        for label, probability, early, _ in zip(*classifier.classify(images), strict=True):
            print(f"{classifier.classes[label]}  {probability:.4f}  {'preview' if early else 'specialist'}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    noise.filter_native_stderr()
    with ending_with_its_reader():
        sys.exit(main())
