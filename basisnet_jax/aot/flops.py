"""Counts the floating-point operations of a program's products and convolutions, 2 for a multiply-add."""

import math
import re

import numpy as np

from basisnet_jax.aot.hlo import Computation, Op, arrays, shape

# Where cuDNN's calls hold the images, the kernels and the result of the convolution that their window describes.
_CUDNN = {
    "__cudnn$convForward": (0, 1, -1),
    "__cudnn$convBiasActivationForward": (0, 1, -1),
    "__cudnn$convBackwardInput": (-1, 1, 0),
    "__cudnn$convBackwardFilter": (0, -1, 1),
}


def count_flops(op: Op, computation: Computation) -> int | None:
    """Returns the floating-point operations of one operation itself; None for a custom call that is not known.

    Only products and convolutions count; positions of a window in padding or between dilated inputs do not.
    """
    if op.kind == "dot":
        return _product(op, computation, r"lhs_contracting_dims=\{([\d,]*)\}")
    if op.kind == "convolution":
        return _convolution(op, computation, (0, 1, -1))
    if op.kind != "custom-call":
        return 0
    target = re.findall(r'custom_call_target="([^"]*)"', op.attributes)
    if target and target[0] in _CUDNN:
        return _convolution(op, computation, _CUDNN[target[0]])
    if target and target[0].startswith("__cublas$"):
        return _product(op, computation, r'"lhs_contracting_dimensions":\[([\d,"]*)\]')
    return None


def _product(op: Op, computation: Computation, contracted: str) -> int:
    left = shape(computation[op.operands[0]].type)
    axes = re.findall(r"\d+", "".join(re.findall(contracted, op.attributes)))
    return 2 * math.prod(shape(op.type)) * math.prod(left[int(axis)] for axis in axes)


def _convolution(op: Op, computation: Computation, roles: tuple[int, int, int]) -> int:
    """Counts a convolution; `roles` are the positions of images, kernels and result among the operands, or -1."""
    types = [*(computation[name].type for name in op.operands), arrays(op.type)[0]]
    images, kernels, result = (shape(types[role]) for role in roles)
    labels = re.findall(r"dim_labels=(\w+)_(\w+)->(\w+)", op.attributes)[0]
    window = re.findall(r"window=\{([^}]*)\}", op.attributes)
    pairs = 1
    for number, axis in enumerate(sorted(set(labels[0]) - set("bf"))):
        sizes = (images[labels[0].index(axis)], kernels[labels[1].index(axis)], result[labels[2].index(axis)])
        pairs *= _pairs(*sizes, window[0] if window else "", number)
    return 2 * pairs * result[labels[2].index("b")] * result[labels[2].index("f")] * kernels[labels[1].index("i")]


def _pairs(images: int, kernel: int, result: int, window: str, axis: int) -> int:
    """Returns along one axis how many pairs of a position in the result and one in the kernel meet an input.

    Args:
      images: length of the input along the axis.
      kernel: length of the kernel.
      result: length of the result.
      window: the attribute, 'size=3x3 stride=2x2 pad=0_1x0_1'.
      axis: number of the axis in the window.
    """

    def value(name: str, default: str) -> str:
        found = re.findall(rf"\b{name}=(\S+)", window)
        return found[0].split("x")[axis] if found else default

    stride, dilated, spread = (int(value(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    padding = int(value("pad", "0_0").split("_")[0])
    at = np.arange(result)[:, None] * stride + np.arange(kernel) * spread - padding
    return int(np.sum((at >= 0) & (at <= (images - 1) * dilated) & (at % dilated == 0)))
