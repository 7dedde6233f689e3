"""Batch norm applied together with the activation after it, and the gradients of both.

Shapes: B images of P pixels (H x W) with C channels.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# Pixels that one iteration of `_sums_by_loop` adds up: 7 and 14 are faster than 28, 56 and 112, and 7 compiles fastest.
_PIXELS = 7

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

    @partial(jax.jit, inline=True)
    def terms(x, dy, mean_C, scale_C, bias_C):
        """Returns what to sum over all pixels for the gradients of bias and scale."""
        before_act = ((x - mean_C) * scale_C + bias_C).astype(x.dtype)
        dbefore_act = jax.vjp(act, before_act)[1](dy)[0].astype(jnp.float32)
        return dbefore_act, dbefore_act * (x - mean_C)

    dbias_C, dscale_C = lax.platform_dependent(
        x_BxHxWxC,
        dy_BxHxWxC,
        mean_C,
        scale_C,
        bias_C,
        cpu=partial(_sums_by_loop, terms),
        default=lambda *arrays: tuple(jnp.sum(term, axis=(0, 1, 2)) for term in terms(*arrays)),
    )
    # Computed again, not kept: a pass that reads x and dy is cheaper than one that writes.
    dx_BxHxWxC = terms(x_BxHxWxC, dy_BxHxWxC, mean_C, scale_C, bias_C)[0] * scale_C
    return dx_BxHxWxC.astype(x_BxHxWxC.dtype), -dbias_C * scale_C, dscale_C, dbias_C


_value.defvjp(_value_forward, _value_backward)


def _sums_by_loop(terms: Callable[..., tuple[jax.Array, ...]], x_BxHxWxC, dy_BxHxWxC, *vectors_C):
    """Returns the sums of both terms over all pixels, by a loop in whose iterations the sums stay in registers.

    XLA's CPU compiler vectorises this loop, but not a reduction over all pixels: it computes the terms first, stores
    them, and reads them for each sum.
    """
    images, *_, channels = x_BxHxWxC.shape
    x_BxPxC, dy_BxPxC = (z.reshape(images, -1, channels) for z in (x_BxHxWxC, dy_BxHxWxC))

    def add(first, sums, count):
        def pixel(offset):
            # Each pixel has its own slices; see taps._kernel_gradient_by_rows.
            start, size = (0, first + offset, 0), (images, 1, channels)
            slices = (lax.dynamic_slice(z, start, size, allow_negative_indices=False) for z in (x_BxPxC, dy_BxPxC))
            return terms(*slices, *vectors_C)

        pixels = [pixel(offset) for offset in range(count)]
        return tuple(total + reduce(jnp.add, term) for total, term in zip(sums, zip(*pixels, strict=True), strict=True))

    whole, rest = divmod(x_BxPxC.shape[1], _PIXELS)
    zeros = jnp.zeros((images, 1, channels), jnp.float32)
    sums = lax.fori_loop(0, whole, lambda i, sums: add(i * _PIXELS, sums, _PIXELS), (zeros, zeros))
    sums = add(whole * _PIXELS, sums, rest) if rest else sums
    return tuple(jnp.sum(total, axis=(0, 1)) for total in lax.optimization_barrier(sums))
