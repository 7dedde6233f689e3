"""Backbones as tables that mirror their papers, and what a width multiplier makes of them.

A table says channels at width 1.0; `scaled` applies the width, and gives the same table with other numbers. The Flax
module (`layers.py`) and the cost (`cost.py`) both read the scaled table and nothing else.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv:
    """One convolution of a block, with batch norm after it.

    `kind` is its name in the block. A 'shortcut' sees the block's input and is added to what the others make of it.
    """

    kind: str
    inputs: int
    out: int
    side: int = 1
    stride: int = 1
    depthwise: bool = False
    se: bool = False  # squeeze-excite follows
    act: str | None = None

    @property
    def weights(self) -> int:
        """Numbers in its kernel."""
        return self.side**2 * (1 if self.depthwise else self.inputs) * self.out


class BlockKind(Protocol):
    """What a table's block says of itself: all that `blocks.Residual` and the cost read."""

    @property
    def out(self) -> int:
        """Output channels."""

    @property
    def stride(self) -> int:
        """Of the whole block."""

    @property
    def last_act(self) -> str | None:
        """The activation after the addition, or None."""

    @property
    def adds_input(self) -> bool:
        """Whether the input is added to the output where both have the same shape and there is no 'shortcut'."""

    def convolutions(self, inputs: int) -> tuple[Conv, ...]:
        """Lists the convolutions in the order in which they run, for a block with that many input channels."""

    def scaled(self, inputs: int, scaled_inputs: int, width: float) -> "BlockKind":
        """Returns the block at a width multiplier that makes `scaled_inputs` of the input's channels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """One inverted residual: expand 1x1 -> depthwise -> [squeeze-excite] -> project 1x1.

    `expand` is the number of channels in the middle; there is no expand convolution when the input has as many.
    """

    kernel: int
    expand: int
    out: int
    stride: int = 1
    se: bool = False
    act: str

    last_act: ClassVar[str | None] = None  # after the addition
    adds_input: ClassVar[bool] = True

    def convolutions(self, inputs: int) -> tuple[Conv, ...]:
        """In the order in which they run, for a block with that many input channels."""
        expand = Conv(kind="expand", inputs=inputs, out=self.expand, act=self.act)
        depthwise = Conv(
            kind="depthwise",
            inputs=self.expand,
            out=self.expand,
            side=self.kernel,
            stride=self.stride,
            depthwise=True,
            se=self.se,
            act=self.act,
        )
        project = Conv(kind="project", inputs=self.expand, out=self.out)
        return (expand, depthwise, project) if self.expand > inputs else (depthwise, project)

    def scaled(self, inputs: int, scaled_inputs: int, width: float) -> "Block":
        """At a width multiplier that makes `scaled_inputs` of the input's channels."""
        expand = make_divisible(scaled_inputs * self.expand / inputs)
        return dataclasses.replace(self, expand=expand, out=make_divisible(self.out * width))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetBlock:
    """ResNet's residual: convolutions of the given sides, the first that is not 1x1 with the stride.

    (3, 3) is the basic block, (1, 3, 1) the bottleneck; `middle` are the channels of all but the last. The shortcut is
    a 1x1 convolution where the block changes the shape.
    """

    sides: tuple[int, ...]
    middle: int
    out: int
    stride: int = 1

    last_act: ClassVar[str | None] = "relu"
    adds_input: ClassVar[bool] = True

    def convolutions(self, inputs: int) -> tuple[Conv, ...]:
        """In the order in which they run, for a block with that many input channels."""
        convs, channels = [], inputs
        strided = next(index for index, side in enumerate(self.sides) if side > 1)
        for index, side in enumerate(self.sides):
            last = index == len(self.sides) - 1
            convs.append(
                Conv(
                    kind=f"conv{index + 1}",
                    inputs=channels,
                    out=self.out if last else self.middle,
                    side=side,
                    stride=self.stride if index == strided else 1,
                    act=None if last else "relu",
                )
            )
            channels = convs[-1].out
        if self.stride > 1 or inputs != self.out:
            convs.append(Conv(kind="shortcut", inputs=inputs, out=self.out, stride=self.stride))
        return tuple(convs)

    def scaled(self, inputs: int, scaled_inputs: int, width: float) -> "ResNetBlock":
        """At a width multiplier; the channels of its input do not matter."""
        del inputs, scaled_inputs
        middle, out = (make_divisible(channels * width) for channels in (self.middle, self.out))
        return dataclasses.replace(self, middle=middle, out=out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conventions:
    """What a family of networks does alike in all of its layers; the defaults are MobileNetV3's in TensorFlow."""

    padding: str = "same"  # TensorFlow's; "symmetric" is PyTorch's: see `taps.pads`
    epsilon: float = 1e-3  # of batch norm
    squeeze_of: str = "expand"  # the channels whose quarter a squeeze-excite has: the block's "expand" or its "input"
    squeeze_act: str = "relu"
    gate: str = "hard_sigmoid"
    # The network wants (image - mean) / std of an image in [-1, 1]; one value, or one a channel.
    input_mean: tuple[float, ...] = (0.0,)
    input_std: tuple[float, ...] = (1.0,)

    def squeeze(self, inputs: int, expand: int) -> int:
        """Channels of the squeeze-excite bottleneck of a block with that many input and expanded channels.

        A quarter of the expansion, made divisible (MobileNetV3, section 5.3), or of the input (EfficientNet).
        """
        return make_divisible(expand / 4) if self.squeeze_of == "expand" else max(1, inputs // 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Stem -> [max pool] -> blocks -> [1x1 convolution] -> average pool -> [dense] -> classifier."""

    stem: int  # channels of the stem
    stem_side: int = 3
    stem_stride: int = 2
    stem_pool: bool = False  # a 3x3 max pool with stride 2 follows
    stem_act: str
    blocks: tuple[BlockKind, ...]
    head_conv: int | None  # channels of the last 1x1 convolution; None: there is none
    head_dense: int | None = None  # units between the pool and the classifier; None: the pool feeds the classifier
    head_act: str
    fixed_ends: bool = False  # stem and head keep their channels at every width
    conventions: Conventions = Conventions()

    @property
    def features(self) -> int:
        """Length of the vector that the classifier sees."""
        return self.head_dense or self.head_conv or self.blocks[-1].out

    def named_blocks(self) -> Iterator[tuple[str, int, BlockKind]]:
        """(name, input channels, block) in order."""
        inputs = self.stem
        for index, block in enumerate(self.blocks):
            yield f"block{index:02d}", inputs, block
            inputs = block.out

    def block_layers(self) -> tuple[str, ...]:
        """Names of the blocks' convolutions, in order: 'block03/expand', 'block03/depthwise', ..."""
        return tuple(
            f"{name}/{conv.kind}" for name, inputs, block in self.named_blocks() for conv in block.convolutions(inputs)
        )

    def head_layers(self) -> tuple[str, ...]:
        """Names of the layers after the blocks, in order."""
        present = {"head_conv": self.head_conv, "head_dense": self.head_dense, "classifier": True}
        return tuple(name for name, there in present.items() if there)


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Nearest multiple of `divisor`, at least one of it, and never less than 90% of `channels` (MobileNet's rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def scaled(architecture: Architecture, width: float) -> Architecture:
    """The table at a width multiplier: every expansion keeps its ratio to the block's input, and is made divisible.

    The vector that a head makes for the classifier keeps its length below width 1.0, as the papers do.
    """
    ends = 1.0 if architecture.fixed_ends else width
    stem = make_divisible(architecture.stem * ends)
    blocks: list[BlockKind] = []
    for _, inputs, block in architecture.named_blocks():
        blocks.append(block.scaled(inputs, blocks[-1].out if blocks else stem, width))
    conv_width = ends if architecture.head_dense else max(ends, 1.0)
    return dataclasses.replace(
        architecture,
        stem=stem,
        blocks=tuple(blocks),
        head_conv=make_divisible(architecture.head_conv * conv_width) if architecture.head_conv else None,
        head_dense=make_divisible(architecture.head_dense * max(ends, 1.0)) if architecture.head_dense else None,
    )


def _stage(
    *, t: int, c: int, n: int, s: int, inputs: int, k: int = 3, se: bool = False, act: str = "relu6"
) -> tuple[Block, ...]:
    """A row of MobileNetV2's table 2: expansion factor t, c output channels, n blocks, the first with stride s."""
    first = Block(kernel=k, expand=t * inputs, out=c, stride=s, se=se, act=act)
    return (first, *(Block(kernel=k, expand=t * c, out=c, se=se, act=act) for _ in range(n - 1)))


# arXiv 1801.04381, table 2.
MOBILENET_V2 = Architecture(
    stem=32,
    stem_act="relu6",
    blocks=(
        *_stage(inputs=32, t=1, c=16, n=1, s=1),
        *_stage(inputs=16, t=6, c=24, n=2, s=2),
        *_stage(inputs=24, t=6, c=32, n=3, s=2),
        *_stage(inputs=32, t=6, c=64, n=4, s=2),
        *_stage(inputs=64, t=6, c=96, n=3, s=1),
        *_stage(inputs=96, t=6, c=160, n=3, s=2),
        *_stage(inputs=160, t=6, c=320, n=1, s=1),
    ),
    head_conv=1280,
    head_act="relu6",
)

# arXiv 1905.02244, table 1.
MOBILENET_V3_LARGE = Architecture(
    stem=16,
    stem_act="hard_swish",
    blocks=(
        Block(kernel=3, expand=16, out=16, act="relu", stride=1),
        Block(kernel=3, expand=64, out=24, act="relu", stride=2),
        Block(kernel=3, expand=72, out=24, act="relu", stride=1),
        Block(kernel=5, expand=72, out=40, se=True, act="relu", stride=2),
        Block(kernel=5, expand=120, out=40, se=True, act="relu", stride=1),
        Block(kernel=5, expand=120, out=40, se=True, act="relu", stride=1),
        Block(kernel=3, expand=240, out=80, act="hard_swish", stride=2),
        Block(kernel=3, expand=200, out=80, act="hard_swish", stride=1),
        Block(kernel=3, expand=184, out=80, act="hard_swish", stride=1),
        Block(kernel=3, expand=184, out=80, act="hard_swish", stride=1),
        Block(kernel=3, expand=480, out=112, se=True, act="hard_swish", stride=1),
        Block(kernel=3, expand=672, out=112, se=True, act="hard_swish", stride=1),
        Block(kernel=5, expand=672, out=160, se=True, act="hard_swish", stride=2),
        Block(kernel=5, expand=960, out=160, se=True, act="hard_swish", stride=1),
        Block(kernel=5, expand=960, out=160, se=True, act="hard_swish", stride=1),
    ),
    head_conv=960,
    head_dense=1280,
    head_act="hard_swish",
)

# arXiv 1905.02244, table 2.
MOBILENET_V3_SMALL = Architecture(
    stem=16,
    stem_act="hard_swish",
    blocks=(
        Block(kernel=3, expand=16, out=16, se=True, act="relu", stride=2),
        Block(kernel=3, expand=72, out=24, act="relu", stride=2),
        Block(kernel=3, expand=88, out=24, act="relu", stride=1),
        Block(kernel=5, expand=96, out=40, se=True, act="hard_swish", stride=2),
        Block(kernel=5, expand=240, out=40, se=True, act="hard_swish", stride=1),
        Block(kernel=5, expand=240, out=40, se=True, act="hard_swish", stride=1),
        Block(kernel=5, expand=120, out=48, se=True, act="hard_swish", stride=1),
        Block(kernel=5, expand=144, out=48, se=True, act="hard_swish", stride=1),
        Block(kernel=5, expand=288, out=96, se=True, act="hard_swish", stride=2),
        Block(kernel=5, expand=576, out=96, se=True, act="hard_swish", stride=1),
        Block(kernel=5, expand=576, out=96, se=True, act="hard_swish", stride=1),
    ),
    head_conv=576,
    head_dense=1024,
    head_act="hard_swish",
)

# Ours, for images of 16 to 32 pixels: six of V3's blocks, two of them strided.
MOBILENET_V3_MICRO = Architecture(
    stem=16,
    stem_act="hard_swish",
    blocks=(
        Block(kernel=3, expand=16, out=16, act="relu", stride=1),
        Block(kernel=3, expand=64, out=24, act="relu", stride=2),
        Block(kernel=3, expand=72, out=24, act="relu", stride=1),
        Block(kernel=3, expand=96, out=40, se=True, act="hard_swish", stride=2),
        Block(kernel=3, expand=120, out=40, se=True, act="hard_swish", stride=1),
        Block(kernel=3, expand=120, out=40, se=True, act="hard_swish", stride=1),
    ),
    head_conv=120,
    head_dense=128,
    head_act="hard_swish",
)


def _mbconv_stages(*, depth: float, fixed_ends: bool, se: bool, act: str) -> tuple[Block, ...]:
    """Table 1 of arXiv 1905.11946, every stage's blocks times `depth`, rounded up; the ends' only if not fixed."""

    def repeats(n: int, end: bool = False) -> int:
        return n if end and fixed_ends else math.ceil(depth * n)

    return (
        *_stage(inputs=32, k=3, t=1, c=16, n=repeats(1, end=True), s=1, se=se, act=act),
        *_stage(inputs=16, k=3, t=6, c=24, n=repeats(2), s=2, se=se, act=act),
        *_stage(inputs=24, k=5, t=6, c=40, n=repeats(2), s=2, se=se, act=act),
        *_stage(inputs=40, k=3, t=6, c=80, n=repeats(3), s=2, se=se, act=act),
        *_stage(inputs=80, k=5, t=6, c=112, n=repeats(3), s=1, se=se, act=act),
        *_stage(inputs=112, k=5, t=6, c=192, n=repeats(4), s=2, se=se, act=act),
        *_stage(inputs=192, k=3, t=6, c=320, n=repeats(1, end=True), s=1, se=se, act=act),
    )


def efficientnet(width: float, depth: float) -> Architecture:
    """EfficientNet (arXiv 1905.11946); stochastic depth, with which it was trained, is not modelled."""
    table = Architecture(
        stem=32,
        stem_act="swish",
        blocks=_mbconv_stages(depth=depth, fixed_ends=False, se=True, act="swish"),
        head_conv=1280,
        head_act="swish",
        conventions=Conventions(squeeze_of="input", squeeze_act="swish", gate="sigmoid"),
    )
    return scaled(table, width)


def efficientnet_lite(width: float, depth: float) -> Architecture:
    """EfficientNet-Lite (tensorflow/tpu): no squeeze-excite, ReLU6, and stem, head, first and last stage not scaled."""
    table = Architecture(
        stem=32,
        stem_act="relu6",
        blocks=_mbconv_stages(depth=depth, fixed_ends=True, se=False, act="relu6"),
        head_conv=1280,
        head_act="relu6",
        fixed_ends=True,
        # It wants (pixel - 127) / 128 of pixels 0 to 255.
        conventions=Conventions(input_mean=(-0.5 / 127.5,), input_std=(128 / 127.5,)),
    )
    return scaled(table, width)


def resnet(sides: tuple[int, ...], repeats: tuple[int, ...]) -> Architecture:
    """Table 1 of arXiv 1512.03385, as torchvision has it: the bottleneck's stride is in its 3x3 convolution."""
    expansion = 4 if len(sides) == 3 else 1
    return Architecture(
        stem=64,
        stem_side=7,
        stem_pool=True,
        stem_act="relu",
        blocks=tuple(
            ResNetBlock(sides=sides, middle=c, out=expansion * c, stride=2 if c > 64 and index == 0 else 1)
            for c, n in zip((64, 128, 256, 512), repeats, strict=True)
            for index in range(n)
        ),
        head_conv=None,
        head_act="relu",
        conventions=Conventions(padding="symmetric", epsilon=1e-5),
    )


PUBLISHERS = ("keras", "torchvision", "timm", "efficientnet_pytorch")


def published_by(table: Architecture, publisher: str) -> Architecture:
    """The table with the padding, epsilon and normalization with which a publisher's weights of it were trained.

    Args:
      table: of a network that it publishes.
      publisher: one of `PUBLISHERS`; 'keras' is keras.applications. timm's networks called `tf_...` have keras's.
    """
    # Mean and deviation of ImageNet's images in [0, 1], of images in [-1, 1].
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    imagenet = {"input_mean": tuple(2 * x - 1 for x in mean), "input_std": tuple(2 * x for x in std)}
    mobilenet_v3 = bool(table.head_dense)
    if publisher in ("keras", "efficientnet_pytorch"):
        changes: dict[str, Any] = imagenet if table.conventions.squeeze_of == "input" else {}
    else:
        epsilon = 1e-3 if publisher == "torchvision" and mobilenet_v3 else 1e-5
        changes = {"padding": "symmetric", "epsilon": epsilon, **imagenet}
    return dataclasses.replace(table, conventions=dataclasses.replace(table.conventions, **changes))


ARCHITECTURES = {
    "mobilenet_v2": MOBILENET_V2,
    "mobilenet_v2_torchvision": published_by(MOBILENET_V2, "torchvision"),
    "mobilenet_v3_large": MOBILENET_V3_LARGE,
    "mobilenet_v3_small": MOBILENET_V3_SMALL,
    "mobilenet_v3_micro": MOBILENET_V3_MICRO,
    # Made for images of 224, 240 and 260 pixels.
    "efficientnet_b0": efficientnet(width=1.0, depth=1.0),
    "efficientnet_b1": efficientnet(width=1.0, depth=1.1),
    "efficientnet_b2": efficientnet(width=1.1, depth=1.2),
    "efficientnet_lite0": efficientnet_lite(width=1.0, depth=1.0),
    "efficientnet_lite1": efficientnet_lite(width=1.0, depth=1.1),
    "efficientnet_lite2": efficientnet_lite(width=1.1, depth=1.2),
    "resnet18": resnet((3, 3), (2, 2, 2, 2)),
    "resnet50": resnet((1, 3, 1), (3, 4, 6, 3)),
}
