"""Any number of images by programs of a few sizes, so that after the first batches nothing compiles again."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

# The large ones are for what a call costs whatever its size, which a small network feels.
SIZES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 128, 256)
MAX_PADDING = 3  # images too many that a bucket is filled up with, rather than that another is begun


def run(function: Callable[..., Any], *arrays_Bx: np.ndarray) -> list[np.ndarray]:
    """The function's outputs for all B, which it is given in pieces of bucket sizes; padding is zeros.

    Args:
      function: arrays of b in SIZES rows -> arrays, or a tree of them, of as many rows.
      arrays_Bx: [B, ...] each, any dtype.

    Returns:
      Its outputs in order, [B, ...] each.
    """

    def padded(array_Bx: np.ndarray, start: int, size: int) -> np.ndarray:
        piece = array_Bx[start : start + size]
        if len(piece) == size:
            return piece
        filled = np.zeros((size, *piece.shape[1:]), piece.dtype)
        filled[: len(piece)] = piece
        return filled

    count = len(arrays_Bx[0])
    # All pieces are started before the first is waited for.
    started = [jax.tree.leaves(function(*(padded(x, *piece) for x in arrays_Bx))) for piece in pieces(count)]
    return [np.concatenate([np.asarray(x) for x in outputs])[:count] for outputs in zip(*started, strict=True)]


def pieces(count: int) -> Iterator[tuple[int, int]]:
    """(start, bucket size) of each piece that `count` images are worked off in; no images are one piece."""
    start = 0
    while start < max(count, 1):
        left = max(count, 1) - start
        size = next((bucket for bucket in SIZES if bucket >= left), None)
        if size is None or size - left > MAX_PADDING:
            size = max(bucket for bucket in SIZES if bucket <= left)
        yield start, size
        start += size
