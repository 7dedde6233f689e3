"""Where a layer's coefficients come from.

A backbone asks its route for every convolution that a bottleneck has: `route(layer, x)` gives that layer's
coefficients_BxN, and the layer is synthesized from N bases, or None, and the layer is a plain convolution. The
backbone does not know which route it has, so every system that is compared is the same backbone with another route.
"""

from collections.abc import Callable, Sequence

import jax

# (layer's name in the backbone, the layer's input) -> coefficients_BxN or None
Route = Callable[[str, jax.Array], jax.Array | None]


def static_route(layer: str, x_BxHxWxC: jax.Array) -> None:
    """No layer is synthesized: the plain network."""
    del layer, x_BxHxWxC


def route_of(coefficients_BxLxN: jax.Array, vectors: dict[str, int]) -> Route:
    """The route of coefficients that are known before the backbone runs: each layer reads the vector named for it."""

    def route(layer: str, x_BxHxWxC: jax.Array) -> jax.Array | None:
        del x_BxHxWxC
        return coefficients_BxLxN[:, vectors[layer]] if layer in vectors else None

    return route


def coefficient_vectors(layers: Sequence[str], granularity: str) -> dict[str, int]:
    """{layer: index l of the coefficient vector that it reads}, numbered in the layers' order.

    Args:
      layers: names such as 'block03/expand'.
      granularity: 'layer', 'block' or 'model' share a vector over one layer, one block or all layers.
    """
    owner = {"layer": lambda layer: layer, "block": lambda layer: layer.split("/")[0], "model": lambda layer: ""}
    owners = [owner[granularity](layer) for layer in layers]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(owners))}
    return {layer: numbers[name] for layer, name in zip(layers, owners, strict=True)}


def layers_to_synthesize(layers: Sequence[str], kinds: Sequence[str], first_block: int) -> tuple[str, ...]:
    """Those of a backbone's `bottleneck_layers` whose kind ('expand', ...) is listed, from a block index on."""

    def chosen(layer: str) -> bool:
        block, kind = layer.split("/")
        return kind in kinds and int(block.removeprefix("block")) >= first_block

    return tuple(layer for layer in layers if chosen(layer))
