"""JPEG, PNG or GIF bytes to pixels, with OpenCV: the header first, so that nothing absurd is decoded.

Gray, CMYK, 16-bit, palette and alpha images all become 8-bit RGB or gray. The EXIF orientation is ignored, as in
TensorFlow, for which data sets such as ImageNet were prepared.
"""

import struct

import cv2
import numpy as np

MAX_PIXELS = 2**26  # of an image: 8192 x 8192, 200 MB as RGB
REDUCTIONS = (8, 4, 2)  # powers of two are what libjpeg's scaled inverse transform is fast at

# flags of cv2.imdecode by (channels, reduction); RGB has no names for its reduced forms
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
_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # JPEG markers with nothing behind them
_FRAME = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers that the image's size stands behind


class BadExampleError(ValueError):
    """An example that cannot be used; the message says why, and goes on from its name: 'example 7 ...'."""


def image_size(encoded: bytes) -> tuple[int, int]:
    """(height, width) in pixels, as the header says.

    Raises:
      BadExampleError: no JPEG, PNG or GIF, or a header that is cut short, or a size of 0 or over MAX_PIXELS.
    """
    try:
        if encoded.startswith(b"\xff\xd8"):
            height, width = _jpeg_size(encoded)
        elif encoded.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", encoded, 16)
        elif encoded.startswith((b"GIF87a", b"GIF89a")):
            width, height = struct.unpack_from("<HH", encoded, 6)
        else:
            raise BadExampleError(f"is no image: {len(encoded)} bytes that are neither JPEG nor PNG nor GIF")
    except struct.error:
        raise BadExampleError(f"is no image: its header is cut short after {len(encoded)} bytes") from None
    if not 0 < height * width <= MAX_PIXELS:
        raise BadExampleError(f"has {width} x {height} pixels, which is not in 1 to {MAX_PIXELS}")
    return height, width


def _jpeg_size(encoded: bytes) -> tuple[int, int]:
    """Walks over the segments to the frame's. Raises struct.error where the bytes end before it."""
    at = 2
    while True:
        at = encoded.find(b"\xff", at)  # as libjpeg does, over bytes that belong to no segment
        (marker,) = struct.unpack_from(">B", encoded, at + 1 if at >= 0 else len(encoded))
        if marker in _FRAME:
            return struct.unpack_from(">HH", encoded, at + 5)
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _STANDALONE:
            at += 2
        else:
            at += 2 + struct.unpack_from(">H", encoded, at + 2)[0]


def best_reduction(encoded: bytes, height: int, width: int, side: int) -> int:
    """The largest reduction that leaves a box of height x width at least side x side; 1 for all but JPEG."""
    if not encoded.startswith(b"\xff\xd8"):
        return 1  # the others are decoded whole whatever is asked for
    return next((k for k in REDUCTIONS if min(height, width) >= k * side), 1)


def decode(encoded: bytes, channels: int, reduction: int = 1) -> np.ndarray:
    """Decodes a whole image.

    Args:
      encoded: a JPEG, PNG or GIF.
      channels: 1 (gray) or 3 (RGB).
      reduction: 1, 2, 4 or 8, by which the sides are divided (and rounded up) while decoding.

    Returns:
      uint8[ceil(H / reduction), ceil(W / reduction), channels].

    Raises:
      BadExampleError: empty, cut short, over MAX_PIXELS, or otherwise not to be decoded.
    """
    height, width = image_size(encoded)
    cv2.setNumThreads(1)  # the pipeline has threads of its own, which OpenCV's would fight with
    flags = _FLAGS[channels, reduction] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None or image.shape[:2] != (-(-height // reduction), -(-width // reduction)):
        raise BadExampleError(f"is no image: {len(encoded)} bytes that are cut short or corrupt")
    return image.reshape(*image.shape[:2], channels)
