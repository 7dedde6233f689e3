"""Reads the orientation that EXIF data gives a photograph, and turns the photograph upright.

However a camera is held, it stores its sensor's rows as they are, and the EXIF tag Orientation says how to turn them.
"""

import struct

import numpy as np

UPRIGHT = 1  # the orientation of an image that is stored as it is shown

_ORIENTATION, _SHORT = 0x0112, 3  # the tag and the type of its value, as in TIFF

# {orientation: (whether rows and columns are swapped, then which of them are reversed: rows, columns)}
_TURNS: dict[int, tuple[bool, bool, bool]] = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def read_orientation(tiff: bytes) -> int:
    """Returns the orientation, 1 to 8, that EXIF data states; UPRIGHT if none can be read.

    Args:
      tiff: EXIF data from its byte order mark on. Only the entries of its first directory are read, 65,535 at most.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return UPRIGHT
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
    except struct.error:
        return UPRIGHT
    entries = tiff[start + 2 : start + 2 + 12 * count]
    entries = entries[: len(entries) // 12 * 12]
    for tag, kind, values, value in struct.iter_unpack(order + "HHIHxx", entries):
        if tag == _ORIENTATION:
            return value if kind == _SHORT and values == 1 and value in _TURNS else UPRIGHT
    return UPRIGHT


def swaps_sides(orientation: int) -> bool:
    """Returns whether an image of that orientation swaps its height and width when turned upright."""
    return _TURNS[orientation][0]


def turn_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns a stored image upright: uint8[H, W, C] -> uint8[H, W, C], or [W, H, C] if the sides swap."""
    transposed, up_down, left_right = _TURNS[orientation]
    image = image.swapaxes(0, 1) if transposed else image
    return np.ascontiguousarray(image[:: -1 if up_down else 1, :: -1 if left_right else 1])
