"""A trained network as pure functions of pixels, with its weights in them: what every format is made from."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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

    def named(self) -> dict[str, Callable[..., Any]]:
        """Those that there are, by name."""
        return {name: stage for name, stage in self._asdict().items() if stage is not None}


def make_stages(
    model: BasisNet, variables: Variables, warm_start: float = 0.0, interceptor: Interceptor | None = None
) -> Stages:
    """The stages with batch norm folded.

    Args:
      model: its layers compute in float32.
      variables: {'params', 'batch_stats'}.
      warm_start: how much of it is left, from 1 to 0.
      interceptor: says layers in a form of a runtime's own, such as `one_image.interceptor()`.
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


@dataclasses.dataclass(frozen=True)
class Network:
    """What is exported.

    Attributes:
      model: its layers compute in float32, and without Pallas kernels, which need a batch of a known size.
      variables: {'params', 'batch_stats'}, float32 arrays of NumPy.
      warm_start: how much of it is left, from 1 to 0.
      side: of the images, in pixels.
      channels: of the images.
      batch: images that a file of a static batch takes at once.
    """

    model: BasisNet
    variables: Variables
    warm_start: float
    side: int
    channels: int
    batch: int = 1

    def stages(self, interceptor: Interceptor | None = None) -> Stages:
        """See `make_stages`."""
        return make_stages(self.model, self.variables, self.warm_start, interceptor)

    def inputs(self, stage: str) -> dict[str, tuple[int, ...]]:
        """{name: shape without the batch} of a stage, in the order of its arguments."""
        image: dict[str, tuple[int, ...]] = {"image": (self.side, self.side, self.channels)}
        preview = self.stages().preview
        if stage == "preview" or preview is None:
            return image
        _, coefficients = jax.eval_shape(preview, jax.ShapeDtypeStruct((1, *image["image"]), jnp.float32))
        return {**image, "coefficients": coefficients.shape[1:]}


OUTPUTS = {"preview": ("logits", "coefficients"), "specialist": ("logits",)}
