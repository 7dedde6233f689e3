"""Convolutions as a runtime of phones wants them: of one image with one kernel.

A synthesized pointwise layer is a product of matrices, since LiteRT's XNNPACK takes those with computed operands, and
convolutions only with constant kernels; any other layer is a plain convolution. What else was tried, and how much it
lost, is in docs/deploy.md. A batch of several images falls back on the model's own forms.
"""

from typing import Any

import jax

from basisnet_jax.models import synthesis
from basisnet_jax.models.blocks import Convolution


def convolution(next_fun: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
    """An interceptor (flax.linen.intercept_methods): kernels are synthesized first, then applied as said above."""
    module = context.module
    if not isinstance(module, Convolution) or context.method_name != "__call__":
        return next_fun(*args, **kwargs)
    return _convolve(module, next_fun, *args, **kwargs)


def _convolve(layer: Convolution, next_fun: Any, x: Any, coefficients_BxN: jax.Array | None = None) -> jax.Array:
    params = layer.variables["params"]
    if coefficients_BxN is None:
        kernel = params["kernel"]
    elif x.shape[0] == 1:
        kernel = synthesis.combine(coefficients_BxN, params["bases"])[0]
    else:
        return next_fun(x, coefficients_BxN)
    if coefficients_BxN is None or layer.side > 1 or layer.depthwise:
        return layer.convolve(synthesis.value_of(x), kernel)
    x_1xHxWxI = synthesis.value_of(x)[:, :: layer.stride, :: layer.stride]
    y_HWxO = x_1xHxWxI.reshape(-1, x_1xHxWxI.shape[-1]) @ kernel
    return y_HWxO.reshape(*x_1xHxWxI.shape[:3], -1)
