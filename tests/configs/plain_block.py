"""docs/design/extending.md followed: a kind of block that the package does not have, adding nothing to its output."""

import dataclasses
from typing import ClassVar

from basisnet_jax.models.architectures import Architecture, Conv, make_divisible


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainBlock:
    """One 3x3 convolution, as VGG's."""

    out: int
    stride: int = 1

    last_act: ClassVar[str | None] = None
    adds_input: ClassVar[bool] = False

    def convolutions(self, inputs: int) -> tuple[Conv, ...]:
        """Lists the one convolution."""
        return (Conv(kind="conv1", inputs=inputs, out=self.out, side=3, stride=self.stride, act="relu"),)

    def scaled(self, inputs: int, scaled_inputs: int, width: float) -> "PlainBlock":
        """Returns the block at a width multiplier; the channels of its input do not matter."""
        del inputs, scaled_inputs
        return dataclasses.replace(self, out=make_divisible(self.out * width))


# mypy, which reads this folder, holds that such a block fits a table.
PLAIN = Architecture(
    stem=8,
    stem_act="relu",
    blocks=(PlainBlock(out=8), PlainBlock(out=16, stride=2)),
    head_conv=None,
    head_act="relu",
)
