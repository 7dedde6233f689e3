"""Backbones as tables that mirror their papers, and what a width multiplier makes of them.

A table says channels at width 1.0; `scaled` applies the width, and gives the same table with other numbers. The Flax
module (`blocks.py`) and the cost (`cost.py`) both read the scaled table and nothing else.
"""

import dataclasses
from collections.abc import Iterator


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

    @property
    def squeeze(self) -> int:
        """Channels of the squeeze-excite bottleneck: a quarter of the expansion (MobileNetV3, section 5.3)."""
        return make_divisible(self.expand / 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Stem -> blocks -> 1x1 convolution -> average pool -> [dense] -> classifier."""

    stem: int  # channels of the 3x3 stem
    stem_stride: int = 2
    stem_act: str
    blocks: tuple[Block, ...]
    head_conv: int  # channels of the last 1x1 convolution
    head_dense: int | None = None  # units between the pool and the classifier; None: the pool feeds the classifier
    head_act: str

    @property
    def features(self) -> int:
        """Length of the vector that the classifier sees."""
        return self.head_dense or self.head_conv

    def named_blocks(self) -> Iterator[tuple[str, int, Block]]:
        """(name, input channels, block) in order."""
        inputs = self.stem
        for index, block in enumerate(self.blocks):
            yield f"block{index:02d}", inputs, block
            inputs = block.out

    def bottleneck_layers(self) -> tuple[str, ...]:
        """Names of the convolutions that can be synthesized, in order: 'block03/expand', 'block03/depthwise', ..."""
        return tuple(
            f"{name}/{layer}"
            for name, inputs, block in self.named_blocks()
            for layer in ("expand", "depthwise", "project")
            if layer != "expand" or block.expand > inputs
        )


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Nearest multiple of `divisor`, at least one of it, and never less than 90% of `channels` (MobileNet's rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def scaled(architecture: Architecture, width: float) -> Architecture:
    """The table at a width multiplier: every expansion keeps its ratio to the block's input, and is made divisible.

    The vector that the classifier sees keeps its length below width 1.0, as the papers do.
    """
    blocks: list[Block] = []
    for _, inputs, block in architecture.named_blocks():
        scaled_inputs = blocks[-1].out if blocks else make_divisible(architecture.stem * width)
        expand = make_divisible(scaled_inputs * block.expand / inputs)
        blocks.append(dataclasses.replace(block, expand=expand, out=make_divisible(block.out * width)))
    has_dense = architecture.head_dense is not None
    return dataclasses.replace(
        architecture,
        stem=make_divisible(architecture.stem * width),
        blocks=tuple(blocks),
        head_conv=make_divisible(architecture.head_conv * (width if has_dense else max(width, 1.0))),
        head_dense=make_divisible(architecture.head_dense * max(width, 1.0)) if architecture.head_dense else None,
    )


def _stage(*, t: int, c: int, n: int, s: int, inputs: int) -> tuple[Block, ...]:
    """A row of MobileNetV2's table 2: expansion factor t, c output channels, n blocks, the first with stride s."""
    first = Block(kernel=3, expand=t * inputs, out=c, stride=s, act="relu6")
    return (first, *(Block(kernel=3, expand=t * c, out=c, act="relu6") for _ in range(n - 1)))


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

ARCHITECTURES = {
    "mobilenet_v2": MOBILENET_V2,
    "mobilenet_v3_large": MOBILENET_V3_LARGE,
    "mobilenet_v3_small": MOBILENET_V3_SMALL,
    "mobilenet_v3_micro": MOBILENET_V3_MICRO,
}
