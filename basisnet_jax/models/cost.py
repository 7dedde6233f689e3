"""Multiply-adds and parameters, counted from the tables.

A MAdd is one multiply of a convolution, dense or squeeze-excite kernel; batch norm, activations, pooling and biases
count nothing. Combining N kernels of P parameters counts N * P, wherever the coefficients come from. By this convention
MobileNetV2 has 300.8M and MobileNetV3-Large 216.6M at 224, and CondConv adds what its paper says.
"""

import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from basisnet_jax.models.architectures import Architecture, Conv
from basisnet_jax.models.routing import Routing, block_of, coefficient_vectors, number_of_vectors
from basisnet_jax.serving.exit_curve import Rate, average_madds


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: the multiply-adds of applying it, the weights of its kernel, and its other parameters."""

    name: str
    madds: int
    weights: int
    others: int = 0  # biases, and batch norm's scale and bias
    inputs: int = 0  # input channels

    @property
    def parameters(self) -> int:
        """Number of all parameters of the layer."""
        return self.weights + self.others


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one image, layer by layer; the first part of a layer's name is its stage."""

    layers: tuple[Layer, ...]
    only_exits: tuple[str, ...] = ()  # names of the preview's layers that its prediction alone needs

    def _madds_of(self, stage: str) -> int:
        return sum(layer.madds for layer in self.layers if layer.name.startswith(f"{stage}/"))

    @functools.cached_property
    def preview(self) -> int:
        """Multiply-adds of the preview with its coefficient head."""
        return self._madds_of("preview")

    @functools.cached_property
    def synthesis(self) -> int:
        """Multiply-adds of combining all kernels, N * P, and of a routing other than a preview before that."""
        return self._madds_of("synthesis")

    @functools.cached_property
    def specialist(self) -> int:
        """Multiply-adds of the specialist, given its kernels."""
        return self._madds_of("specialist")

    @functools.cached_property
    def total(self) -> int:
        """Multiply-adds of an image that goes through both stages."""
        return self.preview + self.synthesis + self.specialist

    @property
    def parameters(self) -> int:
        """Number of all parameters of the model."""
        return sum(layer.parameters for layer in self.layers)

    def madds(self) -> dict[str, int]:
        """Returns the multiply-adds by stage and in 'total', as `results.json` holds them."""
        stages = {"preview": self.preview, "synthesis": self.synthesis, "specialist": self.specialist}
        return {**stages, "total": self.total}

    def without_exits(self) -> "Cost":
        """Returns the cost without early exits: the preview counts as a routing, without `only_exits`."""
        layers = (layer for layer in self.layers if layer.name not in self.only_exits)
        named = (dataclasses.replace(x, name=x.name.replace("preview/", "synthesis/routing/")) for x in layers)
        return Cost(tuple(named))

    def average(self, exit_rate: Rate) -> Rate:
        """Returns the mean multiply-adds of an image where the preview alone answers a share `exit_rate` of images."""
        return average_madds(self, exit_rate)


def backbone_layers(architecture: Architecture, resolution: int, num_classes: int, channels: int) -> list[Layer]:
    """Lists every layer of a backbone in order, for resolution x resolution images with `channels` channels."""
    side = -(-resolution // architecture.stem_stride)

    def convolution(name: str, conv: Conv) -> Layer:
        return Layer(name, conv.weights * side**2, conv.weights, 2 * conv.out, conv.inputs)

    def dense(name: str, inputs: int, out: int) -> Layer:
        return Layer(name, inputs * out, inputs * out, out, inputs)

    stem = Conv(kind="stem", inputs=channels, out=architecture.stem, side=architecture.stem_side)
    layers = [convolution("stem", stem)]
    side = -(-side // 2) if architecture.stem_pool else side
    for name, inputs, block in architecture.named_blocks():
        block_side = side
        for conv in block.convolutions(inputs):
            side = -(-(block_side if conv.kind == "shortcut" else side) // conv.stride)
            layers.append(convolution(f"{name}/{conv.kind}", conv))
            if conv.se:
                squeeze = architecture.conventions.squeeze(inputs, conv.out)
                layers.append(dense(f"{name}/squeeze_excite/reduce", conv.out, squeeze))
                layers.append(dense(f"{name}/squeeze_excite/expand", squeeze, conv.out))
    features = architecture.blocks[-1].out
    if architecture.head_conv:
        head_conv = Conv(kind="head_conv", inputs=features, out=architecture.head_conv)
        layers.append(convolution("head_conv", head_conv))
        features = architecture.head_conv
    if architecture.head_dense:
        layers.append(dense("head_dense", features, architecture.head_dense))
    return [*layers, dense("classifier", architecture.features, num_classes)]


def routing_layers(route: Routing, layers: Iterable[Layer]) -> list[Layer]:
    """Lists a routing's own parameters as layers, given the backbone's layers.

    A routing's kernel is applied once, to a vector, so its multiply-adds are the number of its weights.
    """

    def ask_for_all(route: Routing) -> None:
        block_inputs: dict[str, int] = {}
        for layer in layers:
            inputs = block_inputs.setdefault(block_of(layer.name), layer.inputs)
            route(layer.name, jnp.zeros((1, layer.inputs)), jnp.zeros((1, inputs)))

    variables = jax.eval_shape(lambda: nn.init(ask_for_all, route)(jax.random.key(0)))
    return [
        Layer("/".join(path), leaf.size, leaf.size) if path[-1] == "kernel" else Layer("/".join(path), 0, 0, leaf.size)
        for path, leaf in flatten_dict(variables.get("params", {})).items()
    ]


def static_cost(architecture: Architecture, resolution: int, num_classes: int, channels: int = 3) -> Cost:
    """Counts the plain network."""
    return Cost(tuple(_of_stage("specialist", backbone_layers(architecture, resolution, num_classes, channels))))


def basisnet_cost(
    preview: Architecture,
    preview_resolution: int,
    specialist: Architecture,
    resolution: int,
    num_classes: int,
    *,
    num_bases: int,
    synthesized: tuple[str, ...],
    coefficients_from: str = "classifier",
    granularity: str,
    channel_groups: int = 1,
    channels: int = 3,
) -> Cost:
    """Counts both stages and the synthesis between them; arguments as in `basisnet.BasisNet`."""
    outputs = num_bases * number_of_vectors(coefficient_vectors(synthesized, granularity, channel_groups))
    kernel = {"classifier": preview.features, "pool": preview.pooled}[coefficients_from] * outputs
    head = Layer("coefficients", kernel, kernel, outputs)
    first = [*backbone_layers(preview, preview_resolution, num_classes, channels), head]
    second = backbone_layers(specialist, resolution, num_classes, channels)
    only_exits = {"classifier": ("preview/classifier",), "pool": ("preview/head_dense", "preview/classifier")}
    return Cost(
        (*_of_stage("preview", first), *_synthesized(second, num_bases, synthesized)), only_exits[coefficients_from]
    )


def routed_cost(
    route: Routing, architecture: Architecture, resolution: int, num_classes: int, channels: int = 3
) -> Cost:
    """Counts a network whose coefficients come from a routing other than a preview."""
    layers = backbone_layers(architecture, resolution, num_classes, channels)
    own = _of_stage("synthesis/routing", routing_layers(route, layers))
    return Cost((*own, *_synthesized(layers, route.num_bases, route.synthesized)))


def _synthesized(layers: Sequence[Layer], num_bases: int, synthesized: Collection[str]) -> Iterator[Layer]:
    combined = [Layer(x.name, num_bases * x.weights, num_bases * x.weights) for x in layers if x.name in synthesized]
    # The weights of a synthesized layer are its bases: they are counted in the synthesis, so not here again.
    plain = [dataclasses.replace(x, weights=0) if x.name in synthesized else x for x in layers]
    return itertools.chain(_of_stage("synthesis", combined), _of_stage("specialist", plain))


def _of_stage(stage: str, layers: Iterable[Layer]) -> Iterator[Layer]:
    return (dataclasses.replace(layer, name=f"{stage}/{layer.name}") for layer in layers)
