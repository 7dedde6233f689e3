"""Mixup and cutmix: each image of a batch is mixed with its partner, and the targets in the same shares.

Images 0 and 1 are partners, 2 and 3, and so on. The batch is shuffled anyway, and sharded: a device with an even number
of images sends none, while a flipped or permuted batch would send all images to other devices. Each image has its own
share, not one for the batch as in the papers' code: it costs nothing, and no step is all mixed or all unmixed. Except
for rounding, the result does not depend on the number of devices.

Shapes: B images, an even number, H and W pixels, C channels, K classes. Targets are probabilities, float[B, K], or a
dictionary of them, such as the label's and the teacher's; mixing keeps their sums.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp

Targets = TypeVar("Targets", jax.Array, dict[str, jax.Array])


def mixup(images_BxHxWxC: jax.Array, targets: Targets, key: jax.Array, alpha: float) -> tuple[jax.Array, Targets]:
    """Mixes images and targets as own * share + partner * (1 - share) (arXiv 1710.09412).

    Args:
      images_BxHxWxC: float, any scale.
      targets: float.
      key: a PRNG key, new for each step.
      alpha: above 0; shares are from Beta(alpha, alpha). A small alpha leaves most images close to one of the two.

    Returns:
      Images and targets in their shapes and dtypes.

    Raises:
      ValueError: images are not float.
    """
    if not jnp.issubdtype(images_BxHxWxC.dtype, jnp.floating):
        raise ValueError(f"mixup takes float images, not {images_BxHxWxC.dtype}; normalize them first")
    share_B = _symmetric_beta(key, alpha, len(images_BxHxWxC))
    share_Bx1x1x1 = share_B[:, None, None, None].astype(images_BxHxWxC.dtype)
    mixed_BxHxWxC = share_Bx1x1x1 * images_BxHxWxC + (1 - share_Bx1x1x1) * _partner(images_BxHxWxC)
    return mixed_BxHxWxC, _mix_targets(targets, share_B)


def cutmix(images_BxHxWxC: jax.Array, targets: Targets, key: jax.Array, alpha: float) -> tuple[jax.Array, Targets]:
    """Pastes a rectangle of the partner into each image (arXiv 1905.04899).

    The rectangle has the image's aspect, an area of 1 - Beta(alpha, alpha) and a centre anywhere. It is cut off at the
    image's edges, and the targets are mixed in the shares of the pixels of the result.

    Args:
      images_BxHxWxC: any dtype.
      targets: float.
      key: a PRNG key, new for each step.
      alpha: above 0; the paper's is 1, an even distribution.

    Returns:
      Images and targets in their shapes and dtypes.
    """
    batch, height, width, _ = images_BxHxWxC.shape
    share_key, row_key, column_key = jax.random.split(key, 3)
    side_B = jnp.sqrt(1.0 - _symmetric_beta(share_key, alpha, batch))
    inside_BxH = _interval(row_key, side_B, height)
    inside_BxW = _interval(column_key, side_B, width)
    inside_BxHxWx1 = (inside_BxH[:, :, None] & inside_BxW[:, None, :])[..., None]
    pixels_B = jnp.sum(inside_BxH, axis=1) * jnp.sum(inside_BxW, axis=1)
    pasted_BxHxWxC = jnp.where(inside_BxHxWx1, _partner(images_BxHxWxC), images_BxHxWxC)
    return pasted_BxHxWxC, _mix_targets(targets, 1.0 - pixels_B / (height * width))


def _partner(x_Bx: jax.Array) -> jax.Array:
    return x_Bx.reshape(-1, 2, *x_Bx.shape[1:])[:, ::-1].reshape(x_Bx.shape)


def _mix_targets(targets: Targets, share_B: jax.Array) -> Targets:
    def mix(targets_BxK: jax.Array) -> jax.Array:
        share_Bx1 = share_B[:, None].astype(targets_BxK.dtype)
        return share_Bx1 * targets_BxK + (1 - share_Bx1) * _partner(targets_BxK)

    return jax.tree.map(mix, targets)


def _symmetric_beta(key: jax.Array, alpha: float, size: int) -> jax.Array:
    """Returns float32[size]: numbers from Beta(alpha, alpha), each made of two uniform numbers (Devroye 1996).

    jax.random.beta rejects in loops: they take seconds to compile, and when sharded they synchronize all devices.
    """
    even_B, angle_B = jax.random.uniform(key, (2, size))
    t_B = jnp.sqrt(jnp.expm1(-jnp.log(even_B) / alpha)) * jnp.cos(2 * jnp.pi * angle_B)
    return 0.5 + 0.5 * jnp.sin(jnp.arctan(t_B))  # the sine is t / sqrt(1 + t^2), for an infinite t too


def _interval(key: jax.Array, length_B: jax.Array, size: int) -> jax.Array:
    """Returns bool[B, size]: intervals of `length_B` (a share of `size`) about random places, cut off at the ends."""
    centre_B = jax.random.randint(key, length_B.shape, 0, size)
    pixels_B = (length_B * size).astype(jnp.int32)
    first_B = centre_B - pixels_B // 2
    places_1xN = jnp.arange(size)[None]
    return (places_1xN >= first_B[:, None]) & (places_1xN < (first_B + pixels_B)[:, None])


MIXES = {"mixup": mixup, "cutmix": cutmix}
