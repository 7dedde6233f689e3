"""Loads an image file as a network sees it: decode, turn upright, crop, resize."""

from collections.abc import Callable

import numpy as np

from basisnet_jax.images import decode, exif, library
from basisnet_jax.images.crop import Box, EvalCrop


def load_image(encoded: bytes, side: int, channels: int, crop: EvalCrop) -> np.ndarray:
    """Loads an image as evaluation and prediction see it: uint8[side, side, channels].

    Raises:
      BadExampleError: the image cannot be decoded.
    """

    def box_of(height: int, width: int) -> Box:
        return crop.box(height, width, side)

    return decode_box(encoded, side, channels, box_of, exif_orientation=crop.exif_orientation)


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
    return library.resize(image, side, by_area=max(image.shape[:2]) >= 2 * side)
