"""The preview's small image in the form that suits phones: one strided convolution for each axis.

`basisnet.resize` multiplies by matrices that are nearly all zeros. But their rows repeat: if the sides have the ratio
P to Q in lowest terms, every P pixels give Q outputs with the same Q filters. Only at the edges, the weights inside the
image are scaled to sum to one.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from basisnet_jax.models import basisnet


class _Filters(NamedTuple):
    weights_QxK: np.ndarray
    stride: int
    pads: tuple[int, int]
    scales_S: np.ndarray  # of each output: 1 / the sum of its weights inside the image


def resize(images_BxHxWxC: jax.Array, side: int) -> jax.Array:
    """Resizes as `basisnet.resize` does, and calls that where no filters repeat."""
    batch, height, width, channels = images_BxHxWxC.shape
    rows, columns = _filters(height, side), _filters(width, side)
    if rows is None or columns is None:
        return basisnet.resize(images_BxHxWxC, side)
    y_BxHxGxQC = _convolve(images_BxHxWxC, columns, axis=2)
    y_BxHxSC = y_BxHxGxQC.reshape(batch, height, -1) * np.repeat(columns.scales_S, channels)
    y_BxGxSxQC = _convolve(y_BxHxSC.reshape(batch, height, side, channels), rows, axis=1)
    y_BxGxQxSxC = y_BxGxSxQC.reshape(*y_BxGxSxQC.shape[:3], -1, channels).swapaxes(2, 3)
    y_BxSxSC = y_BxGxQxSxC.reshape(batch, side, -1) * rows.scales_S[:, None]
    return y_BxSxSC.reshape(batch, side, side, channels)


def _convolve(x_BxHxWxC, filters: _Filters, axis: int):
    """Applies all filters along an axis, to each channel alone; filter and channel become the last axis."""
    channels, outputs = x_BxHxWxC.shape[-1], len(filters.weights_QxK)
    kernel_KxCxQC = np.einsum("qk,cd->kcqd", filters.weights_QxK, np.eye(channels, dtype=np.float32))
    kernel = jnp.expand_dims(kernel_KxCxQC.reshape(-1, channels, outputs * channels), 2 - axis)
    strides, pads = [1, 1], [(0, 0), (0, 0)]
    strides[axis - 1], pads[axis - 1] = filters.stride, filters.pads
    return lax.conv_general_dilated(x_BxHxWxC, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _filters(size: int, side: int) -> _Filters | None:
    """Returns the filters of one axis; None if its size stays, or if the middle repetition reaches an edge."""
    if size == side:
        return None
    with jax.ensure_compile_time_eval():
        weights_SxP = np.asarray(jax.image.resize(jnp.eye(size), (side, size), "bilinear"))
    repetitions = math.gcd(size, side)
    stride, outputs, middle = size // repetitions, side // repetitions, repetitions // 2
    weights_QxP = weights_SxP[middle * outputs :][:outputs]
    used = np.flatnonzero(weights_QxP.any(axis=0))
    first, last = int(used[0]), int(used[-1])
    if first == 0 or last == size - 1:
        return None
    weights_QxK = weights_QxP[:, first : last + 1]
    before, length = middle * stride - first, last + 1 - first
    pads = (before, (repetitions - 1) * stride + length - before - size)
    inside = np.lib.stride_tricks.sliding_window_view(np.pad(np.ones(size, np.float32), pads), length)[::stride]
    return _Filters(weights_QxK, stride, pads, 1 / (inside @ weights_QxK.T).ravel())
