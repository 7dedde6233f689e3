"""Preview -> coefficients -> specialist: BasisNet (arXiv 2105.03014) as one Flax module."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from flax import struct

from basisnet_jax.models import routing as routing_lib
from basisnet_jax.models.layers import Backbone
from basisnet_jax.ops import synthesis

COLLECTIONS = ("params", "batch_stats")  # of a network's variables
Variables = Mapping[str, Any]  # {collection: tree of arrays}
FIRST_STAGE = ("preview", "coefficients")  # names of the first stage's variables; all others are the second stage's


@struct.dataclass
class Outputs:
    """The outputs of a forward pass; the preview's parts are None for a network without a preview."""

    logits_BxK: jax.Array
    preview_logits_BxK: jax.Array | None = None
    coefficients_BxLxN: jax.Array | None = None


class BasisNet(nn.Module):
    """A preview that sees a small image, and a specialist whose kernels the preview mixes for that image.

    Without a preview the network is the specialist alone, with another routing's coefficients or with plain kernels:
    these are the networks to compare with.

    Attributes:
      specialist: the second stage, which gives the prediction.
      preview: the first stage; None for a network without one.
      routing: source of the coefficients without a preview; None: no layer is synthesized, the static network.
      preview_resolution: side in pixels of the image that the preview sees.
      coefficients_from: the preview's vector that gives the coefficients: 'classifier', which its classifier sees, or
        'pool', the average of its last feature map.
      num_bases: N.
      synthesized: names of the specialist's layers whose kernels are combined from N bases.
      granularity: 'layer', 'block' or 'model': which layers share one coefficient vector.
      channel_groups: number of groups of a layer's output channels, each with a coefficient vector of its own.
      temperature: of the softmax over the bases.
      start_temperature: temperature at the start of a warm start; None: a warm start mixes in the uniform vector.
    """

    specialist: Backbone
    preview: Backbone | None = None
    routing: routing_lib.Routing | None = None
    preview_resolution: int = 0
    coefficients_from: str = "classifier"
    num_bases: int = 1
    synthesized: tuple[str, ...] = ()
    granularity: str = "layer"
    channel_groups: int = 1
    temperature: float = 1.0
    start_temperature: float | None = None

    def __call__(
        self,
        images_BxHxWxC: jax.Array,
        *,
        train: bool,
        warm_start: jax.Array | float = 0.0,
        task_B: jax.Array | None = None,
    ) -> Outputs:
        """Runs both stages.

        Args:
          images_BxHxWxC: in [-1, 1], at the specialist's resolution.
          train: batch norm by the batch's statistics, and dropout (rng 'dropout').
          warm_start: how much of the warm start is left, from 1 to 0.
          task_B: int32, the task of each image, for the routing that reads it.
        """
        if self.preview is None:
            route: routing_lib.Route = routing_lib.static_route
            if self.routing is not None:
                route = functools.partial(self.routing, warm_start=warm_start, task_B=task_B)
            return Outputs(self.specialist(images_BxHxWxC, route, train).logits_BxK)
        preview_logits_BxK, coefficients_BxLxN = self.first_stage(images_BxHxWxC, train=train, warm_start=warm_start)
        logits_BxK = self.second_stage(images_BxHxWxC, coefficients_BxLxN, train=train)
        return Outputs(logits_BxK, preview_logits_BxK, coefficients_BxLxN)

    @nn.compact
    def first_stage(
        self, images_BxHxWxC: jax.Array, *, train: bool, warm_start: jax.Array | float = 0.0
    ) -> tuple[jax.Array, jax.Array]:
        """Runs the preview: images of any resolution -> (logits_BxK, coefficients_BxLxN), both float32."""
        assert self.preview is not None, "a static network has one stage"
        small_BxhxwxC = self.small_image(images_BxHxWxC)
        preview = self.preview(small_BxhxwxC, routing_lib.static_route, train)
        seen_BxD = {"classifier": preview.features_BxD, "pool": preview.pooled_BxP}[self.coefficients_from]
        shape = (routing_lib.number_of_vectors(self.vectors()), self.num_bases)
        scores_BxLN = nn.Dense(shape[0] * shape[1], name="coefficients")(seen_BxD)
        scores_BxLxN = scores_BxLN.reshape(-1, *shape)
        temperature: jax.Array | float = self.temperature
        if self.start_temperature is not None:
            temperature, warm_start = synthesis.annealed(temperature, self.start_temperature, warm_start), 0.0
        return preview.logits_BxK, synthesis.combination_coefficients(scores_BxLxN, temperature, warm_start)

    def small_image(self, images_BxHxWxC: jax.Array) -> jax.Array:
        """Returns the small image that the preview sees; a method, so that an export can override it."""
        return resize(images_BxHxWxC, self.preview_resolution)

    def second_stage(self, images_BxHxWxC: jax.Array, coefficients_BxLxN: jax.Array, *, train: bool) -> jax.Array:
        """Runs the specialist with kernels combined from the bases by the coefficients -> logits_BxK, float32."""
        route = routing_lib.route_of(coefficients_BxLxN, self.vectors())
        return self.specialist(images_BxHxWxC, route, train).logits_BxK

    @nn.nowrap
    def vectors(self) -> dict[str, tuple[int, ...]]:
        """Returns {layer: indices of the coefficient vectors that it reads}."""
        return routing_lib.coefficient_vectors(self.synthesized, self.granularity, self.channel_groups)


def resize(images_BxHxWxC: jax.Array, side: int) -> jax.Array:
    """Resizes images to side x side pixels, bilinear with antialiasing; the same array if they have that size."""
    shape = (images_BxHxWxC.shape[0], side, side, images_BxHxWxC.shape[3])
    return images_BxHxWxC if images_BxHxWxC.shape == shape else jax.image.resize(images_BxHxWxC, shape, "bilinear")
