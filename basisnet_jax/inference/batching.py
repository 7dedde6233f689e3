"""Runs any number of images with programs of a few batch sizes: after the first batches nothing compiles again."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

# The large sizes spread the fixed cost of a call over many images, which matters for a small network.
SIZES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 128, 256)
MAX_PADDING = 3  # a last chunk that needs more padding images than this is split into smaller buckets


def run(function: Callable[..., Any], *arrays_Bx: np.ndarray) -> list[np.ndarray]:
    """Returns the function's outputs for all B rows, computed in chunks of bucket sizes; padding is zeros.

    Args:
      function: takes arrays of b rows, b in SIZES; returns arrays, or a tree of arrays, of b rows.
      arrays_Bx: [B, ...] each, any dtype.

    Returns:
      The function's outputs in order, [B, ...] each.
    """

    def padded(array_Bx: np.ndarray, start: int, size: int) -> np.ndarray:
        piece = array_Bx[start : start + size]
        if len(piece) == size:
            return piece
        filled = np.zeros((size, *piece.shape[1:]), piece.dtype)
        filled[: len(piece)] = piece
        return filled

    count = len(arrays_Bx[0])
    # All chunks are started before the first result is waited for.
    started = [jax.tree.leaves(function(*(padded(x, *piece) for x in arrays_Bx))) for piece in pieces(count)]
    return [np.concatenate([np.asarray(x) for x in outputs])[:count] for outputs in zip(*started, strict=True)]


def pieces(count: int) -> Iterator[tuple[int, int]]:
    """Yields (start, bucket size) of each chunk of `count` images; no images make one chunk."""
    start = 0
    while start < max(count, 1):
        left = max(count, 1) - start
        size = next((bucket for bucket in SIZES if bucket >= left), None)
        if size is None or size - left > MAX_PADDING:
            size = max(bucket for bucket in SIZES if bucket <= left)
        yield start, size
        start += size
