"""Backbones as tables that mirror their papers, and their scaling by a width multiplier.

A table lists channels at width 1.0; `scaled` returns the same table with the channels of another width. The Flax
module (`layers.py`) and the cost (`cost.py`) both read the scaled table and nothing else.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv:
    """One convolution of a block, with batch norm after it.

    `kind` is its name in the block. A 'shortcut' sees the block's input; its output is added to the last convolution's.
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
        """Number of weights in the kernel."""
        return self.side**2 * (1 if self.depthwise else self.inputs) * self.out


class BlockKind(Protocol):
    """A block of a table: the attributes that `layers.Residual` and the cost read."""

    @property
    def out(self) -> int:
        """Output channels."""

    @property
    def stride(self) -> int:
        """Stride of the whole block."""

    @property
    def last_act(self) -> str | None:
        """The activation after the addition, or None."""

    @property
    def adds_input(self) -> bool:
        """Tells whether the input is added to the output where both have the same shape and there is no 'shortcut'."""

    def convolutions(self, inputs: int) -> tuple[Conv, ...]:
        """Lists the convolutions of the block in the order in which they run, given its number of input channels."""

    def scaled(self, inputs: int, scaled_inputs: int, width: float) -> "BlockKind":
        """Returns the block at a width multiplier, which turns `inputs` input channels into `scaled_inputs`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """One inverted residual: expand 1x1 -> depthwise -> [squeeze-excite] -> project 1x1.

    `expand` is the number of channels in the middle; there is no expand convolution when the input has that many.
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
        """Lists the convolutions in the order in which they run, given the number of input channels."""
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
        """Returns the block at a width multiplier, which turns `inputs` input channels into `scaled_inputs`."""
        expand = make_divisible(scaled_inputs * self.expand / inputs)
        return dataclasses.replace(self, expand=expand, out=make_divisible(self.out * width))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetBlock:
    """ResNet's residual block: convolutions of the given sides; the first that is not 1x1 has the stride.

    (3, 3) is the basic block, (1, 3, 1) the bottleneck; all convolutions but the last have `middle` channels. The
    shortcut is a 1x1 convolution where the block changes the shape.
    """

    sides: tuple[int, ...]
    middle: int
    out: int
    stride: int = 1

    last_act: ClassVar[str | None] = "relu"
    adds_input: ClassVar[bool] = True

    def convolutions(self, inputs: int) -> tuple[Conv, ...]:
        """Lists the convolutions in the order in which they run, given the number of input channels."""
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
        """Returns the block at a width multiplier; the numbers of input channels do not matter."""
        del inputs, scaled_inputs
        middle, out = (make_divisible(channels * width) for channels in (self.middle, self.out))
        return dataclasses.replace(self, middle=middle, out=out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conventions:
    """Conventions that all layers of a family of networks share; the defaults are MobileNetV3's in TensorFlow."""

    padding: str = "same"  # TensorFlow's; "symmetric" is PyTorch's: see `taps.pads`
    epsilon: float = 1e-3  # batch norm's
    squeeze_of: str = "expand"  # a squeeze-excite has a quarter of these channels: the block's "expand" or "input"
    squeeze_act: str = "relu"
    gate: str = "hard_sigmoid"
    # The network takes (image - mean) / std of an image in [-1, 1]; one value, or one per channel.
    input_mean: tuple[float, ...] = (0.0,)
    input_std: tuple[float, ...] = (1.0,)

    def squeeze(self, inputs: int, expand: int) -> int:
        """Returns the channels of the squeeze-excite bottleneck in a block with `inputs` and `expand` channels.

        They are a quarter of the expansion, made divisible (MobileNetV3, section 5.3), or of the input (EfficientNet).
        """
        return make_divisible(expand / 4) if self.squeeze_of == "expand" else max(1, inputs // 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """A backbone table: stem -> [max pool] -> blocks -> [1x1 convolution] -> average pool -> [dense] -> classifier."""

    stem: int  # channels of the stem
    stem_side: int = 3
    stem_stride: int = 2
    stem_pool: bool = False  # a 3x3 max pool with stride 2 follows
    stem_act: str
    blocks: tuple[BlockKind, ...]
    head_conv: int | None  # channels of the last 1x1 convolution; None: no such convolution
    head_dense: int | None = None  # units between the pool and the classifier; None: the pool feeds the classifier
    head_act: str
    fixed_ends: bool = False  # stem and head keep their channels at every width
    conventions: Conventions = Conventions()

    @property
    def pooled(self) -> int:
        """Length of the last feature map's average."""
        return self.head_conv or self.blocks[-1].out

    @property
    def features(self) -> int:
        """Length of the vector that the classifier sees."""
        return self.head_dense or self.pooled

    def named_blocks(self) -> Iterator[tuple[str, int, BlockKind]]:
        """Yields (name, input channels, block) in order."""
        inputs = self.stem
        for index, block in enumerate(self.blocks):
            yield f"block{index:02d}", inputs, block
            inputs = block.out

    def block_layers(self) -> tuple[str, ...]:
        """Returns the names of the blocks' convolutions, in order: 'block03/expand', 'block03/depthwise', ..."""
        return tuple(
            f"{name}/{conv.kind}" for name, inputs, block in self.named_blocks() for conv in block.convolutions(inputs)
        )

    def head_layers(self) -> tuple[str, ...]:
        """Returns the names of the layers after the blocks, in order."""
        present = {"head_conv": self.head_conv, "head_dense": self.head_dense, "classifier": True}
        return tuple(name for name, there in present.items() if there)


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Rounds to the nearest multiple of `divisor`, at least `divisor` and 90% of `channels` (MobileNet's rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def scaled(architecture: Architecture, width: float) -> Architecture:
    """Returns the table at a width multiplier: expansions keep their ratio to the block's input, made divisible.

    Below width 1.0 the vector that the head makes for the classifier keeps its length, as in the papers.
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
    """Returns a row of MobileNetV2's table 2: expansion factor t, c channels, n blocks, the first with stride s."""
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

# This project's own, for images of 16 to 32 pixels: six of V3's blocks, two of them strided.
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
    """Returns table 1 of arXiv 1905.11946 with `depth` times the blocks, rounded up; fixed ends keep their count."""

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
    """Returns the table of EfficientNet (arXiv 1905.11946), without the stochastic depth that it was trained with."""
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
    """Returns the table of EfficientNet-Lite (tensorflow/tpu).

    It has ReLU6 and no squeeze-excite. Stem, head, first and last stage are not scaled.
    """
    table = Architecture(
        stem=32,
        stem_act="relu6",
        blocks=_mbconv_stages(depth=depth, fixed_ends=True, se=False, act="relu6"),
        head_conv=1280,
        head_act="relu6",
        fixed_ends=True,
        # The network takes (pixel - 127) / 128 of pixels 0 to 255.
        conventions=Conventions(input_mean=(-0.5 / 127.5,), input_std=(128 / 127.5,)),
    )
    return scaled(table, width)


def resnet(sides: tuple[int, ...], repeats: tuple[int, ...]) -> Architecture:
    """Returns table 1 of arXiv 1512.03385 as torchvision has it: the bottleneck's 3x3 convolution has the stride."""
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
    """Returns the table with the padding, epsilon and normalization that a publisher's weights were trained with.

    Args:
      table: of a network that the publisher publishes.
      publisher: one of `PUBLISHERS`; 'keras' is keras.applications. timm's networks called `tf_...` have keras's.
    """
    # Mean and deviation of ImageNet's images in [0, 1]; the next line converts them to images in [-1, 1].
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
