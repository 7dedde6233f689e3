"""Batch norm applied together with the activation after it, and the gradients of both.

Shapes: B images of H x W pixels with C channels.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from basisnet_jax.ops.sums import channel_sums

Act = Callable[[jax.Array], jax.Array]


class Normalized(NamedTuple):
    """The activations act((x - mean) * scale + bias), not computed yet: the Pallas kernels do so on the way."""

    x_BxHxWxC: jax.Array
    mean_C: jax.Array  # float32, like scale and bias
    scale_C: jax.Array
    bias_C: jax.Array
    act: Act

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of the value."""
        return self.x_BxHxWxC.shape

    def value(self) -> jax.Array:
        """Computes the activations, in the dtype of x."""
        return _value(*self)


def value_of(x_BxHxWxC: jax.Array | Normalized) -> jax.Array:
    """Returns an array: x itself, or the value of a `Normalized`."""
    return x_BxHxWxC.value() if isinstance(x_BxHxWxC, Normalized) else x_BxHxWxC


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _value(x_BxHxWxC, mean_C, scale_C, bias_C, act: Act):
    y_BxHxWxC = (x_BxHxWxC - mean_C) * scale_C + bias_C
    return act(y_BxHxWxC.astype(x_BxHxWxC.dtype))


def _value_forward(x_BxHxWxC, mean_C, scale_C, bias_C, act):
    return _value(x_BxHxWxC, mean_C, scale_C, bias_C, act), (x_BxHxWxC, mean_C, scale_C, bias_C)


def _value_backward(act, residuals, dy_BxHxWxC):
    x_BxHxWxC, mean_C, scale_C, bias_C = residuals
    # Computed here and not kept by the forward pass: a pass that reads x and dy is cheaper than one that writes.
    before_act = ((x_BxHxWxC - mean_C) * scale_C + bias_C).astype(x_BxHxWxC.dtype)
    dbefore_act = jax.vjp(act, before_act)[1](dy_BxHxWxC)[0].astype(jnp.float32)
    dbias_C, dscale_C = channel_sums(dbefore_act, dbefore_act * (x_BxHxWxC - mean_C))
    dx_BxHxWxC = (dbefore_act * scale_C).astype(x_BxHxWxC.dtype)
    return dx_BxHxWxC, -dbias_C * scale_C, dscale_C, dbias_C


_value.defvjp(_value_forward, _value_backward)
