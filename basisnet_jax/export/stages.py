"""A trained network as pure functions of pixels, with its weights in them: what every format is made from."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from basisnet_jax.models import folding
from basisnet_jax.models.basisnet import BasisNet
from basisnet_jax.models.pretrained import Variables
from basisnet_jax.step import normalize

Interceptor = Callable[..., Any]  # see flax.linen.intercept_methods


class Stages(NamedTuple):
    """Functions of pixels in [0, 255], [B, side, side, channels] in uint8 or float32, at the specialist's resolution.

    Attributes:
      preview: pixels -> (logits_BxK, coefficients_BxLxN); None for a network without one.
      specialist: (pixels, coefficients_BxLxN) -> logits_BxK; without a preview, pixels -> logits_BxK.
    """

    preview: Callable[[jax.Array], tuple[jax.Array, jax.Array]] | None
    specialist: Callable[..., jax.Array]


def make_stages(
    model: BasisNet, variables: Variables, warm_start: float = 0.0, interceptor: Interceptor | None = None
) -> Stages:
    """The stages with batch norm folded.

    Args:
      model: its layers compute in float32.
      variables: {'params', 'batch_stats'}.
      warm_start: how much of it is left, from 1 to 0.
      interceptor: says layers in a form of a runtime's own, such as `one_image.convolution`.
    """
    folded = jax.tree.map(np.asarray, folding.fold_batch_norm(model, variables))

    def apply(pixels_BxHxWxC: jax.Array, *arguments: Any, **keywords: Any) -> Any:
        with nn.intercept_methods(interceptor or (lambda next_fun, args, kwargs, _: next_fun(*args, **kwargs))):
            return model.apply(folded, normalize(pixels_BxHxWxC), *arguments, train=False, **keywords)

    def preview(pixels_BxHxWxC: jax.Array) -> tuple[jax.Array, jax.Array]:
        return apply(pixels_BxHxWxC, warm_start=warm_start, method="first_stage")

    def specialist(pixels_BxHxWxC: jax.Array, coefficients_BxLxN: jax.Array) -> jax.Array:
        return apply(pixels_BxHxWxC, coefficients_BxLxN, method="second_stage")

    def whole(pixels_BxHxWxC: jax.Array) -> jax.Array:
        return apply(pixels_BxHxWxC, warm_start=warm_start).logits_BxK

    return Stages(preview, specialist) if model.preview else Stages(None, whole)
