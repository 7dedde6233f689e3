"""Where a layer's coefficients come from.

A backbone asks its route for every layer that can be synthesized: `route(layer, x, inputs)` gives that layer's
coefficients_BxN, and the layer is synthesized from N bases, or None, and the layer is plain. The backbone does not
know which route it has, so every system that is compared is the same backbone with another route.

A route that has parameters is a `Routing`; docs/extending.md shows how one is added.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from basisnet_jax.ops import synthesis

# (layer's name in the backbone, the layer's input [B, ..., C], its block's input) -> coefficients_BxN, or
# None
Route = Callable[[str, jax.Array, jax.Array], jax.Array | None]


def static_route(layer: str, x: jax.Array, inputs: jax.Array) -> None:
    """No layer is synthesized: the plain network."""
    del layer, x, inputs


def route_of(coefficients_BxLxN: jax.Array, vectors: dict[str, int]) -> Route:
    """The route of coefficients that are known before the backbone runs: each layer reads the vector named for it."""

    def route(layer: str, x: jax.Array, inputs: jax.Array) -> jax.Array | None:
        del x, inputs
        return coefficients_BxLxN[:, vectors[layer]] if layer in vectors else None

    return route


def coefficient_vectors(layers: Sequence[str], granularity: str) -> dict[str, int]:
    """{layer: index l of the coefficient vector that it reads}, numbered in the layers' order.

    Args:
      layers: names such as 'block03/expand'.
      granularity: one of GRANULARITIES; what shares a vector: one layer, one block or all layers.
    """
    owners = [GRANULARITIES[granularity](layer) for layer in layers]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(owners))}
    return {layer: numbers[name] for layer, name in zip(layers, owners, strict=True)}


def block_of(layer: str) -> str:
    """Returns 'block03' of 'block03/expand'; a layer of the head is a block of its own."""
    return layer.split("/")[0]


# {granularity: layer's name -> name of what shares its coefficient vector}
GRANULARITIES: dict[str, Callable[[str], str]] = {
    "layer": lambda layer: layer,
    "block": block_of,
    "model": lambda layer: "",
}
WARM_STARTS = ("uniform", "temperature")  # of a preview's coefficients, see `BasisNet.start_temperature`


class Routing(nn.Module):
    """Coefficients of one kind; `coefficients` is what each kind has of its own.

    Attributes:
      num_bases: N.
      synthesized: names of the layers that are synthesized; the others are plain.
      temperature: of a softmax over the bases.
      start_temperature: the same at the start of a warm start.
      num_tasks: how many tasks the images of a batch may be of.
    """

    num_bases: int
    synthesized: tuple[str, ...]
    temperature: float = 1.0
    start_temperature: float = 1.0
    num_tasks: int = 1

    @nn.compact
    def __call__(
        self,
        layer: str,
        x: jax.Array,
        inputs: jax.Array,
        *,
        warm_start: jax.Array | float = 0.0,
        task_B: jax.Array | None = None,
    ) -> jax.Array | None:
        """A `Route`, given what a batch says besides.

        Args:
          layer: as in `Route`.
          x: as in `Route`.
          inputs: as in `Route`.
          warm_start: how much of the warm start is left, from 1 to 0.
          task_B: int32, the task that each image is of; None: task 0.

        Returns:
          float32[B, N], or None for a plain layer.
        """
        if layer not in self.synthesized:
            return None
        return self.coefficients(layer, x, inputs, warm_start, task_B)

    def coefficients(self, layer, x, inputs, warm_start, task_B) -> jax.Array:
        """[B, N] for a layer that is synthesized; arguments as in `__call__`."""
        raise NotImplementedError


class Uniform(Routing):
    """The mean of the bases for every image: what remains when nothing is routed."""

    def coefficients(self, layer, x, inputs, warm_start, task_B) -> jax.Array:
        """1 / N."""
        return jnp.full((x.shape[0], self.num_bases), 1.0 / self.num_bases)


class CondConv(Routing):
    """CondConv (arXiv 1904.04971): sigmoids of the block's average input, shared by the block's layers."""

    def coefficients(self, layer, x, inputs, warm_start, task_B) -> jax.Array:
        """Asked for by each of a block's layers, computed once: the compiler sees that it is the same."""
        return nn.sigmoid(nn.Dense(self.num_bases, name=block_of(layer))(global_average(inputs)))


class Dynamic(Routing):
    """Dynamic convolution (arXiv 1912.03458): a softmax of each layer's own average input, ever sharper at the start.

    Its temperature falls linearly from `start_temperature` to `temperature` in the warm start.
    """

    def coefficients(self, layer, x, inputs, warm_start, task_B) -> jax.Array:
        """Squeeze to a quarter of the channels, ReLU, a score a basis, softmax."""
        name = layer.replace("/", "_")
        hidden_BxS = nn.relu(nn.Dense(max(1, x.shape[-1] // 4), name=f"{name}_squeeze")(global_average(x)))
        scores_BxN = nn.Dense(self.num_bases, name=f"{name}_scores")(hidden_BxS)
        temperature = synthesis.annealed(self.temperature, self.start_temperature, warm_start)
        return synthesis.combination_coefficients(scores_BxN, temperature, 0.0)


class Task(Routing):
    """One learned vector a layer for each task, such as a user or a camera; the image itself says nothing.

    After the personalization work of the paper's authors; there the bases are frozen and only the vectors trained,
    which is config.optimizer.trained here.
    """

    def coefficients(self, layer, x, inputs, warm_start, task_B) -> jax.Array:
        """A softmax of the task's vector; tasks start alike, and uniform."""
        shape = (self.num_tasks, self.num_bases)
        scores_TxN = self.param(layer.replace("/", "_"), nn.initializers.zeros, shape)
        task_B = jnp.zeros(x.shape[0], jnp.int32) if task_B is None else task_B
        return synthesis.combination_coefficients(scores_TxN[task_B], self.temperature, warm_start)


ROUTINGS: dict[str, type[Routing]] = {"uniform": Uniform, "condconv": CondConv, "dynamic": Dynamic, "task": Task}


def global_average(x: jax.Array) -> jax.Array:
    """[B, ..., C] -> float32[B, C]."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), dtype=jnp.float32)


def layers_to_synthesize(
    block_layers: Sequence[str], head_layers: Sequence[str], kinds: Sequence[str], first_block: int
) -> tuple[str, ...]:
    """The layers that are listed, in the backbone's order.

    Args:
      block_layers: a backbone's; of them those from a block index on, whose kind ('expand', ...) is listed, or all
        where 'blocks' is.
      head_layers: a backbone's; of them those that are listed.
      kinds: the list.
      first_block: the block index.
    """

    def chosen(layer: str) -> bool:
        block, kind = layer.split("/")
        return ("blocks" in kinds or kind in kinds) and int(block.removeprefix("block")) >= first_block

    return (*filter(chosen, block_layers), *(layer for layer in head_layers if layer in kinds))
