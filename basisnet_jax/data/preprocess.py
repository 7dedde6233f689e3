"""Turns encoded examples into the specialist's pixels: decode, crop, resize, move, flip. NumPy and OpenCV only.

A box is (top, left, height, width) in pixels of the whole image. The preview's smaller image is made from the
specialist's image on the device, so both networks see the same crop.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from basisnet_jax.data import augment as policies
from basisnet_jax.data import decode, exif
from basisnet_jax.data.decode import BadExampleError

Box = tuple[int, int, int, int]

CROP_TRIES = 10  # boxes drawn before the central one is taken


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Inception's crop: a part of random area and aspect, anywhere in the image."""

    min_area: float  # share of the image's area, in (0, 1]
    max_aspect: float  # width / height is between 1 / max_aspect and max_aspect, uniform in its logarithm

    def box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        """Returns a random box; if none of CROP_TRIES fits, the largest central box of an allowed aspect."""
        for _ in range(CROP_TRIES):
            area = rng.uniform(self.min_area, 1.0) * height * width
            aspect = self.max_aspect ** rng.uniform(-1.0, 1.0)
            h, w = max(1, round(math.sqrt(area / aspect))), max(1, round(math.sqrt(area * aspect)))
            if h <= height and w <= width:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        h, w = min(height, round(width * self.max_aspect)), min(width, round(height * self.max_aspect))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclasses.dataclass(frozen=True)
class EvalCrop:
    """The part of an image that evaluation and prediction see: all, or Inception's central square."""

    # In pixels at the model's resolution: the square has side / (side + padding) of the image's shorter side. None:
    # all of the image is seen, not a square.
    padding: int | None = None
    exif_orientation: bool = True  # turn the image upright first

    def box(self, height: int, width: int, side: int) -> Box:
        """Returns the box of an image of height x width that a model of resolution `side` sees."""
        if self.padding is None:
            return 0, 0, height, width
        size = max(1, round(min(height, width) * side / (side + self.padding)))
        return (height - size) // 2, (width - size) // 2, size, size


WHOLE_IMAGE = EvalCrop()
CROPS = ("none", "inception")  # of training images: the whole image, or a `RandomCrop`
EVAL_CROPS = ("none", "central")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The random changes of training images: a crop while decoding, the rest at the model's resolution."""

    flip: bool = False
    max_shift: int = 0  # pixels, each way
    max_rotation: float = 0.0  # degrees, each way
    crop: RandomCrop | None = None
    exif_orientation: bool = True  # turn the image upright before anything else
    policy: str = "none"  # or one of POLICIES
    layers: int = 2  # randaugment: operations an image
    magnitude: float = 9.0  # randaugment: their strength, 0 to 10
    erasing: float = 0.0  # probability of random erasing


def decode_box(
    encoded: bytes, side: int, channels: int, box_of: Callable[[int, int], Box], *, exif_orientation: bool
) -> np.ndarray:
    """Decodes one box of an image at the model's resolution, and a large JPEG in no more detail than needed.

    Args:
      encoded: an image file's bytes, as `decode.decode` takes them.
      side: side of the result.
      channels: 1 or 3.
      box_of: returns a box for an image of (height, width).
      exif_orientation: turn the image upright first; the box lies in the upright image.

    Returns:
      uint8[side, side, channels]. If a JPEG is decoded at a half, a quarter or an eighth, the box's edges are rounded
      to whole pixels of the reduced image, which are no larger than the result's pixels.

    Raises:
      BadExampleError: the image cannot be decoded.
    """
    header = decode.read_header(encoded)
    orientation = header.orientation if exif_orientation else exif.UPRIGHT
    size = (header.width, header.height) if exif.swaps_sides(orientation) else (header.height, header.width)
    top, left, height, width = box_of(*size)
    reduction = decode.best_reduction(encoded, height, width, side)
    needed = top + height if orientation == exif.UPRIGHT else None
    image = exif.turn_upright(decode.decode(encoded, channels, reduction, header, needed), orientation)
    rows = slice(round(top / reduction), round((top + height) / reduction))
    columns = slice(round(left / reduction), round((left + width) / reduction))
    return resize(image[rows, columns], side)


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """Resizes uint8[H, W, C] -> uint8[side, side, C]: by area if the image shrinks by two or more, else bilinear."""
    if image.shape[:2] == (side, side):
        return image
    # Below a factor of two, bilinear resizing skips no pixel, and resizing by area takes eight times as long.
    method = cv2.INTER_AREA if max(image.shape[:2]) >= 2 * side else cv2.INTER_LINEAR
    return cv2.resize(image, (side, side), interpolation=method).reshape(side, side, image.shape[2])


# {name: (image, settings, random generator) -> image}
POLICIES: dict[str, Callable[[np.ndarray, Augmentation, np.random.Generator], np.ndarray]] = {
    "autoaugment": lambda image, _, rng: policies.auto_augment(image, rng),
    "randaugment": lambda image, settings, rng: policies.rand_augment(image, settings.layers, settings.magnitude, rng),
}


def augment(image: np.ndarray, settings: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Augments a training image: rotation, shift (the edge repeats), flip, policy, erasing, in this order."""
    angle = rng.uniform(-settings.max_rotation, settings.max_rotation)
    shift = rng.integers(-settings.max_shift, settings.max_shift + 1, size=2)
    flip = rng.random() < 0.5
    if settings.max_shift or settings.max_rotation:
        height, width, channels = image.shape
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
        matrix[:, 2] += shift
        image = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        image = image.reshape(height, width, channels)
    image = cv2.flip(image, 1).reshape(image.shape) if settings.flip and flip else image
    if settings.policy != "none":
        image = POLICIES[settings.policy](image, settings, rng)
    return policies.random_erasing(image, settings.erasing, rng) if settings.erasing else image


def load_train(
    example: dict[str, Any],
    side: int,
    channels: int,
    num_classes: int,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Loads a training example as `load_eval` does, with the augmentation that `rng` draws."""

    def box_of(height: int, width: int) -> Box:
        return augmentation.crop.box(height, width, rng) if augmentation.crop else (0, 0, height, width)

    label = _label(example, num_classes)
    image = decode_box(example["image"], side, channels, box_of, exif_orientation=augmentation.exif_orientation)
    return _example(augment(image, augmentation, rng), label, example)


def load_image(encoded: bytes, side: int, channels: int, crop: EvalCrop) -> np.ndarray:
    """Loads an image as evaluation and prediction see it: uint8[side, side, channels].

    Raises:
      BadExampleError: the image cannot be decoded.
    """

    def box_of(height: int, width: int) -> Box:
        return crop.box(height, width, side)

    return decode_box(encoded, side, channels, box_of, exif_orientation=crop.exif_orientation)


def load_eval(
    example: dict[str, Any], side: int, channels: int, num_classes: int, crop: EvalCrop
) -> dict[str, np.ndarray]:
    """Loads {'image': bytes, 'label': int} as {'image': uint8[side, side, channels], 'label': int32, 'mask': 1.0}.

    A 'task' is passed on as int32.

    Raises:
      BadExampleError: the image cannot be decoded, or the label is not one of `num_classes`.
    """
    label = _label(example, num_classes)
    return _example(load_image(example["image"], side, channels, crop), label, example)


def _label(example: dict[str, Any], num_classes: int) -> int:
    label = int(example["label"])
    if not 0 <= label < num_classes:
        raise BadExampleError(f"has label {label}, which is not in 0 to {num_classes - 1}")
    return label


def _example(image: np.ndarray, label: int, example: dict[str, Any]) -> dict[str, np.ndarray]:
    task = {"task": np.array(example["task"], np.int32)} if "task" in example else {}
    return {"image": image, "label": np.array(label, np.int32), "mask": np.array(1.0, np.float32), **task}
