"""Layers in the form that suits phones: convolutions of one image with one kernel.

A synthesized pointwise layer is a matrix product, since LiteRT's XNNPACK takes matrix products with computed operands,
but convolutions only with constant kernels; any other layer is a plain convolution. docs/design/latency.md lists other
forms that were tried, and what they lost. A batch of several images uses the model's own forms. `phone_resize` makes
the preview's small image.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from basisnet_jax.export import phone_resize
from basisnet_jax.models.basisnet import BasisNet
from basisnet_jax.models.layers import Convolution
from basisnet_jax.ops import synthesis


def interceptor(rows: int = 1) -> Callable[..., Any]:
    """Returns an interceptor for flax.linen.intercept_methods that synthesizes kernels first, then applies them.

    Args:
      rows: see `synthesize`.
    """
    return functools.partial(_intercept, rows)


def synthesize(coefficients_1xGxN: jax.Array, bases_Nx: jax.Array, rows: int = 1) -> jax.Array:
    """Synthesizes the kernel of one image.

    Args:
      coefficients_1xGxN: float32.
      bases_Nx: [N, ...].
      rows: a pointwise kernel is computed as a matrix of so many rows, each with consecutive input channels. To a
        quantizer, a column of the bases is one output channel of a dense layer: its rows * N weights share one scale
        and 12 bytes of channel data. The price is rows - 1 zeros beside each coefficient.
    """
    rows = math.gcd(rows, bases_Nx.shape[1])
    if rows == 1:
        return synthesis.combine(coefficients_1xGxN, bases_Nx)[0]

    def combine(coefficients_1xN: jax.Array, bases_Nx: jax.Array) -> jax.Array:
        bases_RNxP = bases_Nx.reshape(len(bases_Nx), rows, -1).swapaxes(0, 1).reshape(rows * len(bases_Nx), -1)
        return (jnp.kron(jnp.eye(rows), coefficients_1xN) @ bases_RNxP).reshape(bases_Nx.shape[1:])

    return jnp.concatenate([combine(*group) for group in synthesis.by_group(coefficients_1xGxN, bases_Nx)], -1)


def _intercept(rows: int, next_fun: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
    module, method = context.module, context.method_name
    if isinstance(module, Convolution) and method == "__call__":
        return _convolve(module, rows, next_fun, *args, **kwargs)
    if isinstance(module, BasisNet) and method == "small_image":
        return phone_resize.resize(args[0], module.preview_resolution)
    return next_fun(*args, **kwargs)


def _convolve(
    layer: Convolution, rows: int, next_fun: Any, x: Any, coefficients_BxGxN: jax.Array | None = None
) -> jax.Array:
    params = layer.variables["params"]
    if coefficients_BxGxN is None:
        kernel = params["kernel"]
    elif x.shape[0] == 1:
        kernel = synthesize(coefficients_BxGxN, params["bases"], rows)
    else:
        return next_fun(x, coefficients_BxGxN)
    if coefficients_BxGxN is None or layer.side > 1 or layer.depthwise:
        return layer.convolve(synthesis.value_of(x), kernel)
    x_1xHxWxI = synthesis.value_of(x)[:, :: layer.stride, :: layer.stride]
    y_HWxO = x_1xHxWxI.reshape(-1, x_1xHxWxI.shape[-1]) @ kernel
    return y_HWxO.reshape(*x_1xHxWxI.shape[:3], -1)
