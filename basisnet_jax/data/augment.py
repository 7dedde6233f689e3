"""AutoAugment, RandAugment and random erasing on uint8[H, W, C] images, C = 1 or 3. NumPy and OpenCV only.

Each operation follows Pillow's, because the published policies were searched with Pillow: geometry takes the nearest
pixel, and pixels from outside the image are gray. No operation changes its input, but an operation may return it. All
randomness comes from the generator that is passed.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import cv2
import numpy as np

GRAY = 128  # value of pixels from outside the image
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow's mode "L"


# Geometry


def _transform(image: np.ndarray, source_2x3: list[list[float]]) -> np.ndarray:
    """Returns the image that shows the input's point source @ (x, y, 1) at (x, y); pixel centres are at 0.5."""
    matrix = np.array(source_2x3, np.float64)
    matrix[:, 2] += 0.5 * (matrix[:, 0] + matrix[:, 1]) - 0.5  # OpenCV's centres are at whole numbers
    height, width, _ = image.shape
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(image, matrix, (width, height), flags=flags, borderValue=(GRAY,) * 4)
    return moved.reshape(image.shape)


def shear_x(image: np.ndarray, slope: float) -> np.ndarray:
    """Shears horizontally: row y moves left by `slope` * y pixels."""
    return _transform(image, [[1, slope, 0], [0, 1, 0]])


def shear_y(image: np.ndarray, slope: float) -> np.ndarray:
    """Shears vertically: column x moves up by `slope` * x pixels."""
    return _transform(image, [[1, 0, 0], [slope, 1, 0]])


def translate_x(image: np.ndarray, share: float) -> np.ndarray:
    """Moves the image left by `share` of its width, in whole pixels."""
    return _transform(image, [[1, 0, round(share * image.shape[1])], [0, 1, 0]])


def translate_y(image: np.ndarray, share: float) -> np.ndarray:
    """Moves the image up by `share` of its height, in whole pixels."""
    return _transform(image, [[1, 0, 0], [0, 1, round(share * image.shape[0])]])


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates the image counterclockwise about its centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y, x = image.shape[0] / 2, image.shape[1] / 2
    return _transform(image, [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])


# Operations on single values


def _look_up(image: np.ndarray, table_256xC: np.ndarray) -> np.ndarray:
    """Replaces each value by its entry in the table; a single column serves all channels."""
    # astype cuts off the fraction, as Pillow does.
    table = np.clip(table_256xC, 0, 255).astype(np.uint8).reshape(1, 256, -1)
    return cv2.LUT(image, table).reshape(image.shape)


def _histograms(image: np.ndarray) -> np.ndarray:
    """Returns int64[C, 256]: how many pixels of each channel have each value."""
    channels = range(image.shape[2])
    return np.stack([cv2.calcHist([image], [c], None, [256], [0, 256]).ravel() for c in channels]).astype(np.int64)


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Stretches the values of each channel to 0..255."""
    table_256xC = np.tile(np.arange(256.0)[:, None], image.shape[2])
    for channel, counts_256 in enumerate(_histograms(image)):
        present = np.flatnonzero(counts_256)
        if present[-1] > present[0]:
            scale = 255.0 / (present[-1] - present[0])
            table_256xC[:, channel] = table_256xC[:, channel] * scale - present[0] * scale
    return _look_up(image, table_256xC)


def equalize(image: np.ndarray) -> np.ndarray:
    """Spreads each channel's values so that all are about equally frequent."""
    table_256xC = np.tile(np.arange(256)[:, None], image.shape[2])
    for channel, counts_256 in enumerate(_histograms(image)):
        step = (counts_256.sum() - counts_256[np.flatnonzero(counts_256)[-1]]) // 255
        if step:
            table_256xC[:, channel] = (np.cumsum(counts_256) - counts_256 + step // 2) // step
    return _look_up(image, table_256xC)


def invert(image: np.ndarray) -> np.ndarray:
    """Replaces each value by 255 minus the value."""
    return 255 - image


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Inverts values at or above the threshold; a threshold of 256 changes none."""
    values = np.arange(256)
    return _look_up(image, np.where(values < int(threshold), values, 255 - values))


def solarize_add(image: np.ndarray, addition: float) -> np.ndarray:
    """Raises values below 128 by `addition`."""
    values = np.arange(256)
    return _look_up(image, np.where(values < 128, values + int(addition), values))


def posterize(image: np.ndarray, bits: float) -> np.ndarray:
    """Keeps the highest `bits` bits of each value, 0 to 8; a fraction of a bit is dropped."""
    return image & np.uint8(256 - 2 ** (8 - int(bits)))


# Blends of a plainer image (factor 0) and the image (factor 1); other factors lie between or beyond


def _mix_tables(plain: int, factor: float) -> np.ndarray:
    return plain + np.float32(factor) * (np.arange(256, dtype=np.float32) - plain)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends the image with black."""
    return _look_up(image, _mix_tables(0, factor))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends the image with its mean luma."""
    means = np.array(cv2.mean(image)[: image.shape[2]])
    mean = means @ _LUMA if len(means) == 3 else means[0]
    return _look_up(image, _mix_tables(int(mean + 0.5), factor))


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends the image with its luma in all channels; an image of one channel stays as it is."""
    if image.shape[2] == 1:
        return image
    return cv2.transform(image, factor * np.eye(3) + (1.0 - factor) * np.tile(_LUMA, (3, 1)))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends the image with itself smoothed over 3x3 pixels; the outermost pixels stay as they are."""
    smooth_3x3 = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    kernel_3x3 = (1.0 - factor) * smooth_3x3
    kernel_3x3[1, 1] += factor
    result = image.copy()
    inner = cv2.filter2D(image, -1, kernel_3x3).reshape(image.shape)
    result[1:-1, 1:-1] = inner[1:-1, 1:-1]
    return result


# Policies


@dataclasses.dataclass(frozen=True)
class Operation:
    """A function above with the range of its argument."""

    function: Callable[..., np.ndarray]
    ends: tuple[float, float] | None = None  # the argument at the lowest and highest magnitude; None: no argument
    mirrored: bool = False  # a coin toss decides whether the argument goes up or down from the first end

    def __call__(self, image: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
        """Applies the function with the argument at `fraction`, 0 to 1, of its range."""
        if self.ends is None:
            return self.function(image)
        way = fraction * (self.ends[1] - self.ends[0])
        return self.function(image, self.ends[0] + (-way if self.mirrored and rng.random() < 0.5 else way))


# The paper moves images of 331 pixels by up to 150.
_SAME_IN_BOTH = {
    "shear_x": Operation(shear_x, (0.0, 0.3), mirrored=True),
    "shear_y": Operation(shear_y, (0.0, 0.3), mirrored=True),
    "translate_x": Operation(translate_x, (0.0, 150 / 331), mirrored=True),
    "translate_y": Operation(translate_y, (0.0, 150 / 331), mirrored=True),
    "rotate": Operation(rotate, (0.0, 30.0), mirrored=True),
    "auto_contrast": Operation(auto_contrast),
    "invert": Operation(invert),
    "equalize": Operation(equalize),
}
_ENHANCE = {"color": color, "contrast": contrast, "brightness": brightness, "sharpness": sharpness}

# arXiv 1805.09501, the table of operations. Read literally, a higher magnitude solarizes and posterizes less, as in
# tensorflow/tpu (torchvision reverses both), and color 0 is nearly gray.
AUTO_AUGMENT_OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        **_SAME_IN_BOTH,
        "solarize": Operation(solarize, (0, 256)),
        "posterize": Operation(posterize, (4, 8)),
        **{name: Operation(function, (0.1, 1.9)) for name, function in _ENHANCE.items()},
    }
)
# RandAugment's one magnitude stands for strength, so every range here starts where the image stays as it is. The
# operations are those of tensorflow/tpu without cutout, which `random_erasing` replaces.
RAND_AUGMENT_OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        **_SAME_IN_BOTH,
        "solarize": Operation(solarize, (256, 0)),
        "solarize_add": Operation(solarize_add, (0, 110)),
        "posterize": Operation(posterize, (8, 4)),
        **{name: Operation(function, (1.0, 1.9), mirrored=True) for name, function in _ENHANCE.items()},
    }
)


@dataclasses.dataclass(frozen=True)
class Step:
    """One half of a sub-policy."""

    name: str
    p: float  # probability
    m: int  # magnitude, 0 to 9: ten values over the argument's range


# arXiv 1805.09501, table 9, in its order. The last five repeat others, which are therefore twice as likely.
AUTO_AUGMENT_IMAGENET = (
    (Step("posterize", p=0.4, m=8), Step("rotate", p=0.6, m=9)),
    (Step("solarize", p=0.6, m=5), Step("auto_contrast", p=0.6, m=5)),
    (Step("equalize", p=0.8, m=8), Step("equalize", p=0.6, m=3)),
    (Step("posterize", p=0.6, m=7), Step("posterize", p=0.6, m=6)),
    (Step("equalize", p=0.4, m=7), Step("solarize", p=0.2, m=4)),
    (Step("equalize", p=0.4, m=4), Step("rotate", p=0.8, m=8)),
    (Step("solarize", p=0.6, m=3), Step("equalize", p=0.6, m=7)),
    (Step("posterize", p=0.8, m=5), Step("equalize", p=1.0, m=2)),
    (Step("rotate", p=0.2, m=3), Step("solarize", p=0.6, m=8)),
    (Step("equalize", p=0.6, m=8), Step("posterize", p=0.4, m=6)),
    (Step("rotate", p=0.8, m=8), Step("color", p=0.4, m=0)),
    (Step("rotate", p=0.4, m=9), Step("equalize", p=0.6, m=2)),
    (Step("equalize", p=0.0, m=7), Step("equalize", p=0.8, m=8)),
    (Step("invert", p=0.6, m=4), Step("equalize", p=1.0, m=8)),
    (Step("color", p=0.6, m=4), Step("contrast", p=1.0, m=8)),
    (Step("rotate", p=0.8, m=8), Step("color", p=1.0, m=2)),
    (Step("color", p=0.8, m=8), Step("solarize", p=0.8, m=7)),
    (Step("sharpness", p=0.4, m=7), Step("invert", p=0.6, m=8)),
    (Step("shear_x", p=0.6, m=5), Step("equalize", p=1.0, m=9)),
    (Step("color", p=0.4, m=0), Step("equalize", p=0.6, m=3)),
    (Step("equalize", p=0.4, m=7), Step("solarize", p=0.2, m=4)),
    (Step("solarize", p=0.6, m=5), Step("auto_contrast", p=0.6, m=5)),
    (Step("invert", p=0.6, m=4), Step("equalize", p=1.0, m=8)),
    (Step("color", p=0.6, m=4), Step("contrast", p=1.0, m=8)),
    (Step("equalize", p=0.8, m=8), Step("equalize", p=0.6, m=3)),
)


def auto_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Applies one of AutoAugment's 25 sub-policies for ImageNet at random: uint8[H, W, C] -> uint8[H, W, C]."""
    for step in AUTO_AUGMENT_IMAGENET[rng.integers(len(AUTO_AUGMENT_IMAGENET))]:
        if rng.random() < step.p:
            image = AUTO_AUGMENT_OPERATIONS[step.name](image, step.m / 9, rng)
    return image


def rand_augment(image: np.ndarray, num_layers: int, magnitude: float, rng: np.random.Generator) -> np.ndarray:
    """Applies `num_layers` random operations, one after the other (arXiv 1909.13719).

    Args:
      image: uint8[H, W, C].
      num_layers: the paper's N; an operation may be drawn more than once.
      magnitude: the paper's M, for every operation, 0 to 10.
      rng: the source of randomness.

    Returns:
      uint8[H, W, C].

    Raises:
      ValueError: `magnitude` is out of range.
    """
    if not 0 <= magnitude <= 10:
        raise ValueError(f"RandAugment's magnitude {magnitude} is not between 0 and 10")
    operations = tuple(RAND_AUGMENT_OPERATIONS.values())
    for number in rng.integers(len(operations), size=num_layers):
        image = operations[number](image, magnitude / 10, rng)
    return image


def random_erasing(image: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Fills a rectangle of 2 to 33% of uint8[H, W, C] with noise, with `probability` (arXiv 1708.04896).

    Height / width is 0.3 to 3.3, uniform in its logarithm, so tall and wide are equally likely. After ten rectangles
    that do not fit, which is rare unless the image is very oblong, the image stays as it is.
    """
    if rng.random() >= probability:
        return image
    height, width, channels = image.shape
    for _ in range(10):
        area = rng.uniform(0.02, 0.33) * height * width
        aspect = math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            erased = image.copy()
            erased[top : top + rows, left : left + columns] = rng.integers(0, 256, (rows, columns, channels), np.uint8)
            return erased
    return image
