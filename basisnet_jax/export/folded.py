"""A trained network as pure functions of pixels that contain its weights: every format is made from these."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from basisnet_jax.experiment.network_files import NetworkFacts
from basisnet_jax.models import folding
from basisnet_jax.models.basisnet import BasisNet, Variables
from basisnet_jax.models.stages import Stages, make_stages

Interceptor = Callable[..., Any]  # see flax.linen.intercept_methods


def _identity(next_fun: Callable[..., Any], args: Any, kwargs: Any, _: Any) -> Any:
    return next_fun(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network to export.

    Attributes:
      model: computes in float32, and without Pallas kernels, which need a batch of a known size.
      variables: {'params', 'batch_stats'}, float32 NumPy arrays.
      warm_start: how much of the warm start is left, from 1 to 0.
      side: side of the images in pixels.
      channels: channels of the images.
      batch: images in a batch of a file with a static batch.
      early_exit: whether the preview is a stage of its own, and can answer; False: one stage runs both.
      facts: what config.json says of the network; None where the format 'safetensors' is not made.
    """

    model: BasisNet
    variables: Variables
    warm_start: float
    side: int
    channels: int
    batch: int = 1
    early_exit: bool = True
    facts: NetworkFacts | None = None

    def stages(self, interceptor: Interceptor = _identity) -> Stages:
        """Returns the stages as functions of pixels alone, with batch norm folded.

        Args:
          interceptor: replaces layers by a form that suits a runtime, such as `phone_layers.interceptor()`.
        """
        folded = jax.tree.map(np.asarray, folding.fold_batch_norm(self.model, self.variables))

        def intercepted(stage: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arrays_Bx: jax.Array) -> Any:
                with nn.intercept_methods(interceptor):
                    return stage(*arrays_Bx)

            return call

        first, second = self.stages_of_variables().of(folded, self.warm_start)
        return Stages(intercepted(first) if first else None, intercepted(second))

    def stages_of_variables(self) -> Stages:
        """Returns the stages as `make_stages` makes them, joined to one where the preview never answers."""
        stages = make_stages(self.model)
        return stages if self.early_exit else stages.joined()

    def inputs(self, stage: str) -> dict[str, tuple[int, ...]]:
        """Returns {name: shape without the batch} of a stage's inputs, in the order of the arguments."""
        image: dict[str, tuple[int, ...]] = {"image": (self.side, self.side, self.channels)}
        preview = self.stages().first
        if stage == "preview" or preview is None:
            return image
        _, coefficients = jax.eval_shape(preview, jax.ShapeDtypeStruct((1, *image["image"]), jnp.float32))
        return {**image, "coefficients": coefficients.shape[1:]}


OUTPUTS = {"preview": ("logits", "coefficients"), "specialist": ("logits",)}
