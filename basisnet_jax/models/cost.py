"""Multiply-adds and parameters, counted from the tables.

A MAdd is one multiply of a convolution, dense or squeeze-excite kernel; batch norm, activations, pooling and biases
count nothing. Combining N kernels of P parameters counts N * P. By this convention MobileNetV2 has 300.8M and
MobileNetV3-Large 216.6M at 224, and published figures of CondConv are met.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from basisnet_jax.models import routing
from basisnet_jax.models.backbones import Architecture

Rate = TypeVar("Rate", float, np.ndarray)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: the multiply-adds of applying it, the weights of its kernel, and its other parameters."""

    name: str
    madds: int
    weights: int
    others: int = 0  # biases, and batch norm's scale and bias

    @property
    def parameters(self) -> int:
        """All trained numbers of the layer."""
        return self.weights + self.others


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one image costs, layer by layer; the first part of a layer's name is its stage."""

    layers: tuple[Layer, ...]

    def _madds_of(self, stage: str) -> int:
        return sum(layer.madds for layer in self.layers if layer.name.startswith(f"{stage}/"))

    @property
    def preview(self) -> int:
        """Multiply-adds of the preview with its coefficient head."""
        return self._madds_of("preview")

    @property
    def synthesis(self) -> int:
        """Multiply-adds of combining all kernels: N * P."""
        return self._madds_of("synthesis")

    @property
    def specialist(self) -> int:
        """Multiply-adds of the specialist, given its kernels."""
        return self._madds_of("specialist")

    @property
    def total(self) -> int:
        """Multiply-adds of an image that goes through both stages."""
        return self.preview + self.synthesis + self.specialist

    @property
    def parameters(self) -> int:
        """Trained numbers of the whole model."""
        return sum(layer.parameters for layer in self.layers)

    def madds(self) -> dict[str, int]:
        """The dictionary that `results.json` holds."""
        stages = {"preview": self.preview, "synthesis": self.synthesis, "specialist": self.specialist}
        return {**stages, "total": self.total}

    def average(self, exit_rate: Rate) -> Rate:
        """Multiply-adds an image where a share `exit_rate` of images is answered by the preview alone."""
        return self.preview + (1 - exit_rate) * (self.synthesis + self.specialist)


def backbone_layers(architecture: Architecture, resolution: int, num_classes: int, channels: int) -> list[Layer]:
    """Every layer of a backbone on resolution x resolution images of that many channels, in order."""
    side = -(-resolution // architecture.stem_stride)

    def convolution(name: str, weights: int, out: int) -> Layer:
        return Layer(name, weights * side**2, weights, 2 * out)

    def dense(name: str, inputs: int, out: int) -> Layer:
        return Layer(name, inputs * out, inputs * out, out)

    layers = [convolution("stem", 9 * channels * architecture.stem, architecture.stem)]
    for name, inputs, block in architecture.named_blocks():
        if block.expand > inputs:
            layers.append(convolution(f"{name}/expand", inputs * block.expand, block.expand))
        side = -(-side // block.stride)
        layers.append(convolution(f"{name}/depthwise", block.kernel**2 * block.expand, block.expand))
        if block.se:
            squeeze = architecture.conventions.squeeze(inputs, block.expand)
            layers.append(dense(f"{name}/squeeze_excite/reduce", block.expand, squeeze))
            layers.append(dense(f"{name}/squeeze_excite/expand", squeeze, block.expand))
        layers.append(convolution(f"{name}/project", block.expand * block.out, block.out))
    last = architecture.blocks[-1].out
    layers.append(convolution("head_conv", last * architecture.head_conv, architecture.head_conv))
    if architecture.head_dense:
        layers.append(dense("head_dense", architecture.head_conv, architecture.head_dense))
    return [*layers, dense("classifier", architecture.features, num_classes)]


def static_cost(architecture: Architecture, resolution: int, num_classes: int, channels: int = 3) -> Cost:
    """Of the plain network."""
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
    granularity: str,
    channels: int = 3,
) -> Cost:
    """Of both stages and the synthesis between them; arguments as in `basisnet.BasisNet`."""
    outputs = num_bases * len(set(routing.coefficient_vectors(synthesized, granularity).values()))
    head = Layer("coefficients", preview.features * outputs, preview.features * outputs, outputs)
    first = [*backbone_layers(preview, preview_resolution, num_classes, channels), head]
    second = backbone_layers(specialist, resolution, num_classes, channels)
    combined = [Layer(x.name, num_bases * x.weights, num_bases * x.weights) for x in second if x.name in synthesized]
    # A synthesized layer's weights are its bases', and count where they are combined.
    plain = [dataclasses.replace(x, weights=0) if x.name in synthesized else x for x in second]
    return Cost((*_of_stage("preview", first), *_of_stage("synthesis", combined), *_of_stage("specialist", plain)))


def _of_stage(stage: str, layers: Iterable[Layer]) -> Iterator[Layer]:
    return (dataclasses.replace(layer, name=f"{stage}/{layer.name}") for layer in layers)
