"""Turns encoded examples into the specialist's pixels, for training with random changes. NumPy and OpenCV only.

The preview's smaller image is made from the specialist's image on the device, so both networks see the same crop.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from basisnet_jax.data import augment as policies
from basisnet_jax.images.crop import Box, EvalCrop
from basisnet_jax.images.decode import BadExampleError
from basisnet_jax.images.load import decode_box, load_image

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


CROPS = ("none", "inception")  # of training images: the whole image, or a `RandomCrop`


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
