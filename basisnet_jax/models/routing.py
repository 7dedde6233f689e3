"""Routes: where a layer's coefficients come from.

A backbone asks its route for every layer that can be synthesized: `route(layer, x, inputs)` returns that layer's
coefficients_BxGxN, and the layer is synthesized from N bases, or None, and the layer is plain. The backbone does not
know which route it has, so all systems to compare are the same backbone with different routes.

A route that has parameters is a `Routing`; docs/design/extending.md shows how to add one.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from basisnet_jax.ops import synthesis

# (layer's name in the backbone, the layer's input [B, ..., C], the block's input) -> coefficients_BxGxN, a vector
# for each of G groups of the layer's output channels, or None
Route = Callable[[str, jax.Array, jax.Array], jax.Array | None]


def static_route(layer: str, x: jax.Array, inputs: jax.Array) -> None:
    """Returns None for every layer: no layer is synthesized, the network is plain."""
    del layer, x, inputs


def route_of(coefficients_BxLxN: jax.Array, vectors: dict[str, tuple[int, ...]]) -> Route:
    """Makes the route of coefficients known before the backbone runs: each layer reads its vectors in `vectors`."""
    # Stored with the layers first: else a GPU program computes each layer's part by itself. The gradient of `unstack`
    # is one stack; that of slices would be a sum.
    coefficients_LxBxN = jnp.unstack(lax.optimization_barrier(jnp.moveaxis(coefficients_BxLxN, 1, 0)))

    def route(layer: str, x: jax.Array, inputs: jax.Array) -> jax.Array | None:
        del x, inputs
        return jnp.stack([coefficients_LxBxN[vector] for vector in vectors[layer]], 1) if layer in vectors else None

    return route


def coefficient_vectors(layers: Sequence[str], granularity: str, groups: int = 1) -> dict[str, tuple[int, ...]]:
    """Returns {layer: indices l of the coefficient vectors that it reads}, numbered in the layers' order.

    Args:
      layers: names such as 'block03/expand'.
      granularity: one of GRANULARITIES: each layer has vectors, each block has some, or all layers share them.
      groups: number of groups of a layer's output channels, each with a vector of its own.
    """
    owners = [GRANULARITIES[granularity](layer) for layer in layers]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(owners))}
    first = {layer: numbers[name] * groups for layer, name in zip(layers, owners, strict=True)}
    return {layer: tuple(range(number, number + groups)) for layer, number in first.items()}


def number_of_vectors(vectors: dict[str, tuple[int, ...]]) -> int:
    """Counts the coefficient vectors that the layers read."""
    return len({number for numbers in vectors.values() for number in numbers})


def block_of(layer: str) -> str:
    """Returns 'block03' for 'block03/expand'; a layer of the head is a block of its own."""
    return layer.split("/")[0]


# {granularity: layer's name -> name of the group of layers that shares its coefficient vector}
GRANULARITIES: dict[str, Callable[[str], str]] = {
    "layer": lambda layer: layer,
    "block": block_of,
    "model": lambda layer: "",
}
WARM_STARTS = ("uniform", "temperature")  # for a preview's coefficients, see `BasisNet.start_temperature`


class Routing(nn.Module):
    """A route with parameters; each kind of routing has its own `coefficients`.

    Attributes:
      num_bases: N.
      synthesized: names of the layers that are synthesized; the others are plain.
      temperature: of a softmax over the bases.
      start_temperature: temperature at the start of a warm start.
      num_tasks: number of tasks that have coefficients of their own.
      channel_groups: G, groups of a layer's output channels, each with coefficients of its own.
    """

    num_bases: int
    synthesized: tuple[str, ...]
    temperature: float = 1.0
    start_temperature: float = 1.0
    num_tasks: int = 1
    channel_groups: int = 1

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
        """Returns a layer's coefficients, as a `Route` that also takes the warm start and the batch's tasks.

        Args:
          layer: as in `Route`.
          x: as in `Route`.
          inputs: as in `Route`.
          warm_start: how much of the warm start is left, from 1 to 0.
          task_B: int32, the task of each image; None: task 0.

        Returns:
          float32[B, G, N], or None for a plain layer.
        """
        if layer not in self.synthesized:
            return None
        return self.coefficients(layer, x, inputs, warm_start, task_B)

    def coefficients(self, layer, x, inputs, warm_start, task_B) -> jax.Array:
        """Returns [B, G, N] for a layer that is synthesized; arguments as in `__call__`."""
        raise NotImplementedError

    def scores(self, features_BxD: jax.Array, name: str) -> jax.Array:
        """Computes scores_BxGxN by a dense layer of that name; called in `coefficients`."""
        scores_BxGN = nn.Dense(self.channel_groups * self.num_bases, name=name)(features_BxD)
        return scores_BxGN.reshape(-1, self.channel_groups, self.num_bases)


class Uniform(Routing):
    """The mean of the bases for every image: mixing without routing."""

    def coefficients(self, layer, x, inputs, warm_start, task_B) -> jax.Array:
        """Returns 1 / N everywhere."""
        return jnp.full((x.shape[0], self.channel_groups, self.num_bases), 1.0 / self.num_bases)


class CondConv(Routing):
    """CondConv (arXiv 1904.04971): sigmoids of the block's average input, shared by the block's layers."""

    def coefficients(self, layer, x, inputs, warm_start, task_B) -> jax.Array:
        """Returns the block's coefficients; each layer asks, but the compiler merges the equal computations."""
        return nn.sigmoid(self.scores(global_average(inputs), block_of(layer)))


class Dynamic(Routing):
    """Dynamic convolution (arXiv 1912.03458): a softmax computed from each layer's own average input.

    In the warm start its temperature falls linearly from `start_temperature` to `temperature`.
    """

    def coefficients(self, layer, x, inputs, warm_start, task_B) -> jax.Array:
        """Computes a squeeze to a quarter of the channels, ReLU, one score per basis, softmax."""
        name = layer.replace("/", "_")
        hidden_BxS = nn.relu(nn.Dense(max(1, x.shape[-1] // 4), name=f"{name}_squeeze")(global_average(x)))
        temperature = synthesis.annealed(self.temperature, self.start_temperature, warm_start)
        return synthesis.combination_coefficients(self.scores(hidden_BxS, f"{name}_scores"), temperature, 0.0)


class Task(Routing):
    """One learned vector per layer for each task, such as a user or a camera; the image itself is not read.

    This follows the personalization work of the paper's authors, who freeze the bases and train only the vectors;
    config.optimizer.trained does that here.
    """

    def coefficients(self, layer, x, inputs, warm_start, task_B) -> jax.Array:
        """Returns the softmax of the task's vector; at initialization it is uniform for every task."""
        shape = (self.num_tasks, self.channel_groups * self.num_bases)
        scores_TxGN = self.param(layer.replace("/", "_"), nn.initializers.zeros, shape)
        task_B = jnp.zeros(x.shape[0], jnp.int32) if task_B is None else task_B
        scores_BxGxN = scores_TxGN[task_B].reshape(-1, self.channel_groups, self.num_bases)
        return synthesis.combination_coefficients(scores_BxGxN, self.temperature, warm_start)


ROUTINGS: dict[str, type[Routing]] = {"uniform": Uniform, "condconv": CondConv, "dynamic": Dynamic, "task": Task}


def global_average(x: jax.Array) -> jax.Array:
    """Averages over all positions: [B, ..., C] -> float32[B, C]."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), dtype=jnp.float32)


def layers_to_synthesize(
    block_layers: Sequence[str], head_layers: Sequence[str], kinds: Sequence[str], first_block: int
) -> tuple[str, ...]:
    """Returns the layers whose kind is listed, in the backbone's order.

    Args:
      block_layers: the backbone's layers in blocks.
      head_layers: the backbone's layers after them.
      kinds: kinds of block layers ('expand', ...) or 'blocks' for all; names of head layers.
      first_block: index of the first block to take layers from.
    """

    def chosen(layer: str) -> bool:
        block, kind = layer.split("/")
        return ("blocks" in kinds or kind in kinds) and int(block.removeprefix("block")) >= first_block

    return (*filter(chosen, block_layers), *(layer for layer in head_layers if layer in kinds))
