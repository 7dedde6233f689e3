"""Convolutions as a runtime of phones wants them: of one image with one kernel, which is a plain convolution.

A batch of several images falls back on the model's own forms.
"""

from typing import Any

import jax

from basisnet_jax.models import synthesis
from basisnet_jax.models.blocks import Convolution


def convolution(next_fun: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
    """An interceptor (flax.linen.intercept_methods): each convolution by XLA's own, its kernel synthesized before."""
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
    return layer.convolve(synthesis.value_of(x), kernel)
