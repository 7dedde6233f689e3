"""What an export's manifest.json holds. No JAX."""

import dataclasses
import hashlib
from typing import Any

from basisnet_jax.serving.exit_rule import ChosenRule

SCHEMA = 2  # of manifest.json; raised where a reader of the schema before would be wrong
NAME, LABELS, CARD = "manifest.json", "labels.txt", "model_card.md"


@dataclasses.dataclass(frozen=True)
class FileFacts:
    """Facts that identify an exported file."""

    bytes: int
    sha256: str
    worst_relative_error: float | None = None  # of an image's largest logit, against the trained network


def file_facts(content: bytes, worst_relative_error: float | None = None) -> FileFacts:
    """Returns the facts of a file's content."""
    return FileFacts(len(content), hashlib.sha256(content).hexdigest(), worst_relative_error)


@dataclasses.dataclass(frozen=True)
class Input:
    """The images that the files take.

    Attributes:
      side: of the images, in pixels.
      channels: 1 or 3.
      color: 'RGB' or 'gray'.
      batch: images that a .tflite or .onnx file takes at once; a .stablehlo file takes any number.
      dtype: of the pixels, by kind of file.
      crop: what is cut out of an image, in words.
      crop_share: side of the central square that is cut out / shorter side of the image; None where nothing is cut.
      resize: how an image is resized, in words.
      exif_orientation: whether photographs are turned upright first, in words.
      preview_image: how the preview's small image is made, in words; None without a preview.
      layout: order of the axes.
      range: smallest and largest value of a pixel. The files contain the networks' normalization of pixels.
    """

    side: int
    channels: int
    color: str
    batch: int
    dtype: dict[str, str]
    crop: str
    crop_share: float | None
    resize: str
    exif_orientation: str
    preview_image: str | None
    layout: str = "NHWC"
    range: list[int] = dataclasses.field(default_factory=lambda: [0, 255])


@dataclasses.dataclass(frozen=True)
class Data:
    """The images that the network was trained on."""

    name: str
    train_split: str


@dataclasses.dataclass(frozen=True)
class TwoStages:
    """Results of both stages under the exit rule."""

    top1: float
    exit_rate: float
    madds: float  # multiply-adds of an image, on average


@dataclasses.dataclass(frozen=True)
class Top1:
    """Accuracy of a network, or of its files of one kind, from 0 to 1."""

    specialist: float
    preview: float | None = None  # None without a preview
    two_stages: TwoStages | None = None  # None without an exit rule


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Accuracy of the trained network and of every kind of file.

    Attributes:
      images: the images that it was measured on, in words.
      top1: of the trained network ('jax' or words) and of each format, by name.
    """

    images: str
    top1: dict[str, Top1]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
      step: of the checkpoint that was exported.
      input: the images that the files take.
      outputs: names of each stage's outputs.
      madds: multiply-adds of an image, by part of the network; 'preview' of an image that the preview answers alone,
        'total' of an image that both stages see.
      parameters: of the network.
      files: facts of the stages' files, by name.
      labels: facts of labels.txt.
      data: the training data.
      config: the run's config as JSON values.
      versions: of packages.
      accuracy: before and after the export.
      warnings: sentences about formats that lose accuracy.
      rule: which images exit early; None if no rule was chosen.
      frozen: what a network frozen for one place was frozen for; None for other networks.
      coefficients: float[L, N] of a frozen network.
      expires: until when files can be read, in words, by format; {} without a limit.
      computes_in: dtype of the files, quantized files excepted, whatever dtype the run was trained in.
      schema: of this content.
    """

    step: int
    input: Input
    outputs: dict[str, list[str]]
    madds: dict[str, int]
    parameters: int
    files: dict[str, FileFacts]
    labels: FileFacts
    data: Data
    config: dict[str, Any]
    versions: dict[str, str]
    accuracy: Accuracy
    warnings: list[str]
    rule: ChosenRule | None = None
    frozen: str | None = None
    coefficients: list[list[float]] | None = None
    expires: dict[str, str] = dataclasses.field(default_factory=dict)
    computes_in: str = "float32"
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """Returns the content as JSON values."""
        return {**dataclasses.asdict(self), "rule": self.rule.to_json() if self.rule else None}
