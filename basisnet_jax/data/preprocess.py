"""From an encoded image to the pixels that the specialist sees: decode, resize, move, flip. NumPy and OpenCV only."""

import dataclasses
from typing import Any

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to training images, at the model's resolution."""

    flip: bool = False
    max_shift: int = 0  # pixels, each way
    max_rotation: float = 0.0  # degrees, each way


def decode(encoded: bytes, channels: int) -> np.ndarray:
    """PNG or JPEG bytes -> uint8[H, W, channels], RGB or gray. Raises ValueError if they are no image."""
    cv2.setNumThreads(1)  # the pipeline has threads of its own, which OpenCV's would fight with
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag) if encoded else None
    if image is None:
        raise ValueError(f"{len(encoded)} bytes are no image that OpenCV can decode")
    return image.reshape(*image.shape[:2], channels)


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """uint8[H, W, C] -> uint8[side, side, C]: by area when it shrinks, bilinear when it grows."""
    if image.shape[:2] == (side, side):
        return image
    shrinks = image.shape[0] * image.shape[1] > side * side
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (side, side), interpolation=method).reshape(side, side, image.shape[2])


def central_crop(image: np.ndarray, side: int) -> np.ndarray:
    """The central square that is `side` pixels when the shorter edge is side + 32 (the evaluation of MnasNet)."""
    edge = round(min(image.shape[:2]) * side / (side + 32))
    top, left = ((size - edge) // 2 for size in image.shape[:2])
    return image[top : top + edge, left : left + edge]


def augment(image: np.ndarray, settings: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """A training image, turned, moved and flipped at random; what comes into view repeats the edge."""
    angle = rng.uniform(-settings.max_rotation, settings.max_rotation)
    shift = rng.integers(-settings.max_shift, settings.max_shift + 1, size=2)
    flip = rng.random() < 0.5
    if settings.max_shift or settings.max_rotation:
        height, width, channels = image.shape
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
        matrix[:, 2] += shift
        image = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        image = image.reshape(height, width, channels)
    return np.ascontiguousarray(image[:, ::-1]) if settings.flip and flip else image


def load(example: dict[str, Any], side: int, channels: int) -> dict[str, np.ndarray]:
    """{'image': bytes, 'label': int} -> {'image': uint8[side, side, channels], 'label': int32, 'mask': 1.0}."""
    return {
        "image": resize(decode(example["image"], channels), side),
        "label": np.array(example["label"], np.int32),
        "mask": np.array(1.0, np.float32),
    }
