"""Decodes JPEG, PNG, GIF, WebP and BMP; reads the header first, so that no absurd size is decoded.

Gray, CMYK, 16-bit, palette and alpha images all become 8-bit RGB or gray; of an animation, the first image is decoded.
Pixels are returned as stored: `exif.turn_upright` turns them by the orientation that `read_header` finds.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from basisnet_jax.images import MAX_PIXELS, exif, library

# libjpeg smooths colors of half resolution with the rows below, and decodes up to 32 rows at a time.
_CONTEXT, _LAST_ROWS = 16, 32
REDUCTIONS = (8, 4, 2)  # libjpeg's scaled inverse transform is fast at powers of two

_JPEG, _PNG, _GIF, _BMP = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", (b"GIF87a", b"GIF89a"), b"BM"
_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # JPEG markers that no data follows
_FRAME = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers that the image's size follows
_SEQUENTIAL = {0xC0, 0xC1}  # those of frames whose scan goes through the image once
_SCAN, _RESTARTS, _END = 0xDA, 0xDD, b"\xff\xd9"
_FURTHER_IMAGES = b"MPF\0"  # what such data begins with: a photograph and its preview in one file
_APP1 = 0xE1  # the JPEG marker of EXIF data, which begins with _EXIF, and of other data
_EXIF = b"Exif\0\0"


class BadExampleError(ValueError):
    """An example that cannot be used; the message says why, and continues the example's name: 'example 7 ...'."""


class Header(NamedTuple):
    """The size and orientation of an image, known before it is decoded."""

    height: int  # in pixels, as the image is stored
    width: int
    orientation: int  # EXIF's, 1 to 8; 1 where the image has none


def read_header(encoded: bytes) -> Header:
    """Reads an image's size and orientation from its header.

    Raises:
      BadExampleError: the format is another, the header is cut short, or the size is 0 or over MAX_PIXELS.
    """
    try:
        header = _read_header(encoded)
    except struct.error:
        raise BadExampleError(f"is not an image: its header is cut short after {len(encoded)} bytes") from None
    if not 0 < header.height * header.width <= MAX_PIXELS:
        raise BadExampleError(f"has {header.width} x {header.height} pixels, which is not in 1 to {MAX_PIXELS}")
    return header


def _read_header(encoded: bytes) -> Header:
    """Reads the header of any format. Raises struct.error if the bytes end too early."""
    if encoded.startswith(_JPEG):
        return _jpeg_header(encoded)
    if encoded.startswith(_PNG):
        return _png_header(encoded)
    if encoded.startswith(_GIF):
        width, height = struct.unpack_from("<HH", encoded, 6)
        return Header(height, width, exif.UPRIGHT)
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return _webp_header(encoded)
    if encoded.startswith(_BMP):
        return _bmp_header(encoded)
    raise BadExampleError(f"is not an image: {len(encoded)} bytes that are neither JPEG, PNG, GIF, WebP nor BMP")


def _jpeg_segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, start, end) of the data of each segment. Raises struct.error where the bytes end."""
    at = 2
    while True:
        at = encoded.find(b"\xff", at)  # skips bytes that belong to no segment, as libjpeg does
        (marker,) = struct.unpack_from(">B", encoded, at + 1 if at >= 0 else len(encoded))
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _STANDALONE:
            at += 2
        else:
            (length,) = struct.unpack_from(">H", encoded, at + 2)
            yield marker, at + 4, at + 2 + length
            at += 2 + length


def _jpeg_header(encoded: bytes) -> Header:
    """Reads the segments up to the frame's, which EXIF data precedes."""
    orientation = exif.UPRIGHT
    for marker, start, end in _jpeg_segments(encoded):
        if marker in _FRAME:
            height, width = struct.unpack_from(">HH", encoded, start + 1)
            return Header(height, width, orientation)
        if marker == _APP1 and encoded.startswith(_EXIF, start):
            orientation = exif.read_orientation(encoded[start + len(_EXIF) : end])
    raise struct.error  # not reached: the segments end with this error


def _upper_rows(encoded: bytes, rows: int) -> bytes | None:
    """Lowers the height in a JPEG's header to `rows`, so that libjpeg decodes no row below.

    The end marker goes too: libjpeg looks for it after the last row, and would print a warning about the data between.

    Returns:
      A JPEG; None if its data is not one sequential scan up to the end of the bytes.

    Raises:
      struct.error: the JPEG ends before its scan.
    """
    frame, components = 0, 0  # where the frame's header is, and how many it has
    for marker, start, _ in _jpeg_segments(encoded):
        if marker in _SEQUENTIAL:
            frame, (components,) = start, struct.unpack_from(">B", encoded, start + 5)
        elif marker in _FRAME or marker == _RESTARTS or encoded.startswith(_FURTHER_IMAGES, start):
            return None
        elif marker == _SCAN:
            (scanned,) = struct.unpack_from(">B", encoded, start)
            if scanned != components or not encoded.endswith(_END):
                return None
            return b"".join([encoded[: frame + 1], struct.pack(">H", rows), encoded[frame + 3 : -len(_END)]])
    raise struct.error  # not reached: the segments end with this error


def _png_header(encoded: bytes) -> Header:
    width, height = struct.unpack_from(">II", encoded, 16)
    orientation = exif.UPRIGHT
    if b"eXIf" not in encoded:  # faster than a walk over the chunks
        return Header(height, width, orientation)
    try:
        for kind, start, end in _png_chunks(encoded):
            if kind == b"eXIf":
                orientation = exif.read_orientation(encoded[start + 8 : end - 4])
    except struct.error:
        pass  # the header itself is complete; `decode` refuses the image
    return Header(height, width, orientation)


def _png_chunks(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields (type, start, end) of each chunk up to the last. Raises struct.error if the last is missing."""
    end, kind = len(_PNG), b""
    while kind != b"IEND":
        start = end
        length, kind = struct.unpack_from(">I4s", encoded, start)
        end = start + 12 + length  # 12 bytes of length, type and checksum
        if end > len(encoded):
            raise struct.error
        yield kind, start, end


def _png_of_pixels(encoded: bytes) -> bytes:
    """Drops chunks of a PNG that do not change its pixels: libpng prints a warning for each that it dislikes.

    Raises:
      struct.error: the PNG is cut short.
    """
    # An upper-case first letter marks the chunks that an image needs; of the others, only transparency may matter.
    chunks = list(_png_chunks(encoded))
    kept = [(start, end) for kind, start, end in chunks if kind[:1].isupper() or kind == b"tRNS"]
    if len(kept) == len(chunks):
        return encoded
    return b"".join([_PNG, *(encoded[start:end] for start, end in kept)])


def _webp_header(encoded: bytes) -> Header:
    kind = encoded[12:16]
    if kind == b"VP8 ":  # lossy: a frame's tag of 3 bytes, a start code of 3 bytes, 14 bits for each side
        width, height = struct.unpack_from("<HH", encoded, 26)
        return Header(height & 0x3FFF, width & 0x3FFF, exif.UPRIGHT)
    if kind == b"VP8L":  # lossless: a signature of one byte, 14 bits for each side less 1
        (bits,) = struct.unpack_from("<I", encoded, 21)
        return Header((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1, exif.UPRIGHT)
    if kind != b"VP8X":
        raise BadExampleError("is not an image: a WebP file without image data")
    # extended: flags of 4 bytes, 24 bits for each side less 1, then chunks
    low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", encoded, 24)
    size = (low_height + (high_height << 16) + 1, low_width + (high_width << 16) + 1)
    at = 30
    while at + 8 <= len(encoded):
        kind, length = struct.unpack_from("<4sI", encoded, at)
        if kind == b"EXIF":
            return Header(*size, exif.read_orientation(encoded[at + 8 : at + 8 + length].removeprefix(_EXIF)))
        at += 8 + length + length % 2
    return Header(*size, exif.UPRIGHT)


def _bmp_header(encoded: bytes) -> Header:
    (length,) = struct.unpack_from("<I", encoded, 14)
    width, height = struct.unpack_from("<HH" if length == 12 else "<ii", encoded, 18)
    return Header(abs(height), width, exif.UPRIGHT)  # rows from top to bottom have a negative height


def best_reduction(encoded: bytes, height: int, width: int, side: int) -> int:
    """Returns the largest reduction that leaves a box of height x width at least side x side; 1 for all but JPEG."""
    if not encoded.startswith(_JPEG):
        return 1  # other formats are decoded whole whatever the flags say
    return next((k for k in REDUCTIONS if min(height, width) >= k * side), 1)


def decode(
    encoded: bytes, channels: int, reduction: int = 1, header: Header | None = None, rows: int | None = None
) -> np.ndarray:
    """Decodes an image, or its upper rows.

    Args:
      encoded: a JPEG, PNG, GIF, WebP or BMP.
      channels: 1 (gray) or 3 (RGB).
      reduction: 1, 2, 4 or 8: the sides are divided by it (and rounded up) while decoding.
      header: what `read_header` returns for `encoded`; None reads the header again.
      rows: how many of the image's rows are needed; None: all.

    Returns:
      uint8[ceil(H / reduction), ceil(W / reduction), channels], as stored, not turned upright. With `rows`, the result
      may end below those rows, which are the same.

    Raises:
      BadExampleError: the image is empty, cut short, over MAX_PIXELS, or cannot be decoded for another reason. With
        `rows`, data for the rows below is not decoded, so an error there is not found.
    """
    header = header or read_header(encoded)
    image = None
    try:
        if rows is not None and encoded.startswith(_JPEG) and rows + _CONTEXT + _LAST_ROWS <= header.height:
            upper = _upper_rows(encoded, rows + _CONTEXT)
            image = _decode(upper, channels, reduction, header.width, rows + _CONTEXT) if upper else None
        if image is None:
            pixels = _png_of_pixels(encoded) if encoded.startswith(_PNG) else encoded
            image = _decode(pixels, channels, reduction, header.width, header.height)
    except struct.error:
        image = None
    if image is None:
        raise BadExampleError(f"is not an image: {len(encoded)} bytes that are cut short or corrupt")
    return image


def _decode(encoded: bytes, channels: int, reduction: int, width: int, height: int) -> np.ndarray | None:
    """Decodes an image of height x width; None if the library cannot, or finds another size."""
    image = library.decode(encoded, channels, reduction)
    if image is None or image.shape[:2] != (-(-height // reduction), -(-width // reduction)):
        return None
    return image.reshape(*image.shape[:2], channels)
