"""Decodes with Pillow and resizes with NumPy, as `opencv.py` does, for machines that serve without OpenCV."""

import functools
import io
import warnings

import numpy as np
from PIL import Image

from basisnet_jax.images import MAX_PIXELS

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
_MODES = {1: "L", 3: "RGB"}


def decode(encoded: bytes, channels: int, reduction: int) -> np.ndarray | None:
    """Decodes an image file; arguments and result are those of `opencv.decode`."""
    _configure()
    mode = _MODES[channels]
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:  # a damaged file may tell Pillow another size than us
                return None
            # A JPEG's gray is its luma; libjpeg scales by the largest of 8, 4, 2, 1 that leaves at least this size.
            image.draft(mode, (max(1, image.width // reduction), max(1, image.height // reduction)))
            if image.mode.startswith("I"):  # gray of 16 bits, which `convert` would clip
                gray = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
                return gray if channels == 1 else np.stack([gray] * 3, axis=-1)
            return np.asarray(image.convert(mode))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


@functools.cache
def _configure() -> None:
    """Stops Pillow's warnings about files, once a process: our own sentence names a file that cannot be read."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def resize(image: np.ndarray, side: int, *, by_area: bool) -> np.ndarray:
    """Resizes uint8[H, W, C] -> uint8[side, side, C], by area or bilinear, to 1 of OpenCV's pixels."""
    height, width = image.shape[:2]
    grows = min(height, width) < side
    down_SxH, across_SxW = (_weights(size, side, by_area, grows) for size in (height, width))
    rows_SxWxC = np.tensordot(down_SxH, image.astype(np.float32), 1)
    resized_SxSxC = np.moveaxis(np.tensordot(across_SxW, rows_SxWxC, (1, 1)), 0, 1)
    return np.rint(resized_SxSxC).clip(0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _weights(size: int, side: int, by_area: bool, grows: bool) -> np.ndarray:
    """Returns float32[side, size]: the share of each of `size` pixels in each of `side` pixels of a line.

    By area, a pixel is the mean of the interval that it covers; if one side of the image grows, OpenCV interpolates
    instead, from the interval's first pixel to the next. Bilinear interpolates at the pixel's center.
    """
    scale, place = size / side, np.arange(side)
    if by_area and not grows:
        edges = np.arange(size)
        start, end = place[:, None] * scale, np.minimum((place[:, None] + 1) * scale, size)
        covered = np.minimum(edges + 1, end) - np.maximum(edges, start)
        return (covered.clip(0) / (end - start)).astype(np.float32)
    if by_area:
        first = np.floor(place * scale).astype(int)
        share = (place + 1) - (first + 1) / scale
        share = np.where(share <= 0, 0.0, share - np.floor(share))
    else:
        center = (place + 0.5) * scale - 0.5
        first = np.floor(center).astype(int)
        share = center - first
    weights = np.zeros((side, size), np.float32)
    np.add.at(weights, (place, first.clip(0, size - 1)), 1 - share)
    np.add.at(weights, (place, (first + 1).clip(0, size - 1)), share)
    return weights
