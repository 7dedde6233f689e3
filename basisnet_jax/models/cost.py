"""Multiply-adds and parameters, counted from the tables.

A MAdd is one multiply of a convolution, dense or squeeze-excite kernel; batch norm, activations, pooling and biases
count nothing. Combining N kernels of P parameters counts N * P. By this convention MobileNetV2 has 300.8M and
MobileNetV3-Large 216.6M at 224, and published figures of CondConv are met.
"""

import dataclasses

from basisnet_jax.models import routing
from basisnet_jax.models.backbones import Architecture


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: the multiply-adds of applying it, the weights of its kernel, and its other parameters."""

    name: str
    madds: int
    weights: int
    others: int  # biases, and batch norm's scale and bias


@dataclasses.dataclass(frozen=True)
class Cost:
    """Multiply-adds an image, by stage, and the parameters of the whole model."""

    preview: int  # the preview with its coefficient head
    synthesis: int  # N * P, all synthesized kernels
    specialist: int
    parameters: int

    @property
    def total(self) -> int:
        """Multiply-adds of an image that goes through both stages."""
        return self.preview + self.synthesis + self.specialist

    def madds(self) -> dict[str, int]:
        """The dictionary that `results.json` holds."""
        stages = {"preview": self.preview, "synthesis": self.synthesis, "specialist": self.specialist}
        return {**stages, "total": self.total}


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
    layers = backbone_layers(architecture, resolution, num_classes, channels)
    return Cost(0, 0, sum(x.madds for x in layers), sum(x.weights + x.others for x in layers))


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
    first = static_cost(preview, preview_resolution, num_classes, channels)
    second = static_cost(specialist, resolution, num_classes, channels)
    outputs = num_bases * len(set(routing.coefficient_vectors(synthesized, granularity).values()))
    layers = backbone_layers(specialist, resolution, num_classes, channels)
    kernels = sum(layer.weights for layer in layers if layer.name in synthesized)
    return Cost(
        preview=first.specialist + preview.features * outputs,
        synthesis=num_bases * kernels,
        specialist=second.specialist,
        parameters=first.parameters + (preview.features + 1) * outputs + second.parameters + (num_bases - 1) * kernels,
    )
