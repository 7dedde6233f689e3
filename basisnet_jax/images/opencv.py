"""Decodes and resizes with OpenCV."""

import functools

import cv2
import numpy as np

# flags of cv2.imdecode by (channels, reduction); OpenCV has no names for reduced RGB
_FLAGS = {
    (1, 1): cv2.IMREAD_GRAYSCALE,
    (1, 2): cv2.IMREAD_REDUCED_GRAYSCALE_2,
    (1, 4): cv2.IMREAD_REDUCED_GRAYSCALE_4,
    (1, 8): cv2.IMREAD_REDUCED_GRAYSCALE_8,
    (3, 1): cv2.IMREAD_COLOR_RGB,
    (3, 2): cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    (3, 4): cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    (3, 8): cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


def decode(encoded: bytes, channels: int, reduction: int) -> np.ndarray | None:
    """Decodes an image file as it is stored.

    Args:
      encoded: the file's bytes.
      channels: 1 (gray) or 3 (RGB).
      reduction: 1, or 2, 4 or 8 for a JPEG: the sides are divided by it and rounded up.

    Returns:
      uint8[H, W] or [H, W, 3]; None if OpenCV cannot decode the file.
    """
    _configure()
    try:
        flags = _FLAGS[channels, reduction] | cv2.IMREAD_IGNORE_ORIENTATION
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:
        return None


def resize(image: np.ndarray, side: int, *, by_area: bool) -> np.ndarray:
    """Resizes uint8[H, W, C] -> uint8[side, side, C], by area or bilinear."""
    resized = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if by_area else cv2.INTER_LINEAR)
    return resized.reshape(side, side, image.shape[2])


@functools.cache
def _configure() -> None:
    """Stops OpenCV's threads and log, once a process: the pipeline has its own threads and reports bad images."""
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
