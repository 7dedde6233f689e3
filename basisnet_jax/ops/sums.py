"""Sums over all positions of several arrays, one per channel.

Shapes: arrays are [B, ..., C], B images with C channels.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def channel_sums(*terms_BxC: jax.Array) -> tuple[jax.Array, ...]:
    """Sums each of several arrays over all axes but the last.

    XLA fuses such sums into one pass over the arrays, except on a GPU behind a product. So an NVIDIA GPU gets one
    reduction with several results.

    Args:
      terms_BxC: arrays of one shape and dtype.

    Returns:
      One [C] for each array.
    """
    return lax.platform_dependent(*terms_BxC, default=_apart, cuda=_together)


def _apart(*terms_BxC):
    return tuple(jnp.sum(term_BxC, axis=tuple(range(term_BxC.ndim - 1))) for term_BxC in terms_BxC)


def _together(*terms_BxC):
    # Each device sums its own images, then a plain sum adds the devices' parts: of a sharded reduction with several
    # results, XLA would gather the parts.
    parts = math.gcd(terms_BxC[0].shape[0], max(jax.sharding.get_abstract_mesh().size, 1))
    terms_DxPxC = [term_BxC.reshape(parts, -1, term_BxC.shape[-1]) for term_BxC in terms_BxC]
    zeros = [jnp.zeros((), term.dtype) for term in terms_DxPxC]
    sums_DxC = lax.reduce(terms_DxPxC, zeros, lambda xs, ys: [x + y for x, y in zip(xs, ys, strict=True)], (1,))
    return tuple(jnp.unstack(jnp.sum(jnp.stack(sums_DxC), axis=1)))


def _forward(*terms_BxC):
    return channel_sums(*terms_BxC), terms_BxC


def _backward(terms_BxC, dsums_C):
    return tuple(jnp.broadcast_to(dsum_C, term_BxC.shape) for dsum_C, term_BxC in zip(dsums_C, terms_BxC, strict=True))


channel_sums.defvjp(_forward, _backward)
