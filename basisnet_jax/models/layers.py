"""Convolution, dense, norm and activation, squeeze-excite, residual block, and the backbone that stacks them.

Parameters are float32; the layers compute in `dtype`. Batch norm's statistics and the logits are float32.
Under jit, batch norm takes its statistics over the global batch, also where the batch is sharded. In training,
'batch_stats' are returned as the statistics of this batch alone; the training step averages them (training/step.py).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import lax
from jax.typing import DTypeLike

from basisnet_jax.errors import UserError
from basisnet_jax.models.architectures import Architecture, BlockKind, Conv, Conventions
from basisnet_jax.models.routing import Route, global_average
from basisnet_jax.ops import synthesis, taps
from basisnet_jax.ops.sums import channel_sums
from basisnet_jax.ops.synthesis import Normalized, value_of

ACTIVATIONS = {"relu": nn.relu, "relu6": nn.relu6, "hard_swish": nn.hard_swish, "swish": nn.swish}
GATES = {"hard_sigmoid": nn.hard_sigmoid, "sigmoid": nn.sigmoid}


class Convolution(nn.Module):
    """A convolution without bias: plain, or synthesized if it is called with coefficients_BxGxN.

    The parameter is `kernel`, or `bases` with a leading axis of N: each basis is drawn on its own, normal with
    variance 2 / fan_out of the single kernel. `padding` goes to `taps.pads`, `pallas_kernels` to `synthesis`.
    """

    features: int
    side: int = 1
    stride: int = 1
    depthwise: bool = False
    padding: str = "same"
    dtype: DTypeLike = jnp.float32
    pallas_kernels: bool = False

    @nn.compact
    def __call__(self, x_BxHxWxI: jax.Array | Normalized, coefficients_BxGxN: jax.Array | None = None) -> jax.Array:
        """Maps [B, H, W, I] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        if not (self.depthwise and isinstance(x_BxHxWxI, Normalized)):
            x_BxHxWxI = value_of(x_BxHxWxI).astype(self.dtype)
        shape = (
            *((self.side, self.side) if self.side > 1 else ()),
            *(() if self.depthwise else (x_BxHxWxI.shape[-1],)),
            self.features,
        )
        fan_out = self.side**2 * (1 if self.depthwise else self.features)
        initializer = nn.initializers.normal((2.0 / fan_out) ** 0.5)
        if coefficients_BxGxN is None:
            kernel = self.param("kernel", initializer, shape).astype(self.dtype)
            return self._plain(x_BxHxWxI, kernel)
        bases = self.param("bases", initializer, (coefficients_BxGxN.shape[-1], *shape)).astype(self.dtype)
        if self.depthwise:
            return synthesis.depthwise(
                x_BxHxWxI, bases, coefficients_BxGxN, self.stride, self.padding, self.pallas_kernels
            )
        if self.side > 1:
            return synthesis.dense(x_BxHxWxI, bases, coefficients_BxGxN, self.stride, self.padding)
        strided = value_of(x_BxHxWxI)[:, :: self.stride, :: self.stride]
        return synthesis.pointwise(strided, bases, coefficients_BxGxN, self.pallas_kernels)

    def _plain(self, x_BxHxWxI, kernel):
        if self.depthwise:
            return synthesis.static_depthwise(x_BxHxWxI, kernel, self.stride, self.padding, self.pallas_kernels)
        if self.side == 1:
            return synthesis.static_pointwise(x_BxHxWxI[:, :: self.stride, :: self.stride], kernel)
        return self.convolve(x_BxHxWxI, kernel)

    @nn.nowrap
    def convolve(self, x_BxHxWxI: jax.Array, kernel: jax.Array) -> jax.Array:
        """Convolves all images with one kernel of the layer's shape, as XLA's own convolution."""
        if self.depthwise:
            return synthesis.xla_depthwise(x_BxHxWxI, kernel[None], self.stride, self.padding)
        kernel_KxKxIxO = kernel.reshape(self.side, self.side, *kernel.shape[-2:])
        pads = [taps.pads(size, self.side, self.stride, self.padding)[:2] for size in x_BxHxWxI.shape[1:3]]
        dimensions = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x_BxHxWxI, kernel_KxKxIxO, (self.stride,) * 2, pads, dimension_numbers=dimensions
        )


class Dense(nn.Module):
    """A dense layer with a bias: plain, or synthesized if it is called with coefficients; images share the bias.

    The kernel's parameter is `kernel`, or `bases` with a leading axis of N, each basis drawn on its own (LeCun's).
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_BxI: jax.Array, coefficients_BxGxN: jax.Array | None = None) -> jax.Array:
        """Maps [B, I] -> [B, features]."""
        shape = (x_BxI.shape[-1], self.features)
        x_BxI = x_BxI.astype(self.dtype)
        if coefficients_BxGxN is None:
            y_BxO = x_BxI @ self.param("kernel", nn.initializers.lecun_normal(), shape).astype(self.dtype)
        else:
            initializer = nn.initializers.lecun_normal(batch_axis=0)
            bases = self.param("bases", initializer, (coefficients_BxGxN.shape[-1], *shape)).astype(self.dtype)
            y_BxO = synthesis.pointwise(x_BxI[:, None, None], bases, coefficients_BxGxN)[:, 0, 0]
        return y_BxO + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch norm's statistics and parameters, in the arithmetic of Flax's BatchNorm; neither applied nor averaged."""

    epsilon: float

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns (mean_C, scale_C, bias_C), float32: (x - mean) * scale + bias normalizes the batch."""
        shape = x_BxHxWxC.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        mean_C, var_C = mean.value, var.value
        if train:
            x = x_BxHxWxC.astype(jnp.float32)
            mean_C, square_C = (sum_C / (x.size // x.shape[-1]) for sum_C in channel_sums(x, lax.square(x)))
            var_C = jnp.maximum(0.0, square_C - lax.square(mean_C))
            if not self.is_initializing():
                mean.value, var.value = mean_C, var_C
        scale_C = self.param("scale", nn.initializers.ones, shape)
        bias_C = self.param("bias", nn.initializers.zeros, shape)
        return mean_C, lax.rsqrt(var_C + self.epsilon) * scale_C, bias_C


class Norm(nn.Module):
    """Batch norm, then an activation."""

    act: str | None = None
    epsilon: float = 1e-3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> Normalized:
        """Maps [B, H, W, C] -> the same shape, in `dtype`."""
        norm = BatchNorm(self.epsilon, name="batch_norm")(x_BxHxWxC, train)
        return Normalized(x_BxHxWxC.astype(self.dtype), *norm, ACTIVATIONS[self.act] if self.act else lambda x: x)


class SqueezeExcite(nn.Module):
    """Squeeze-excite: rescales channels by a gate computed from their global averages."""

    squeeze: int
    act: str = "relu"
    gate: str = "hard_sigmoid"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] -> the same shape."""
        pooled_BxC = jnp.mean(x_BxHxWxC, axis=(1, 2), dtype=jnp.float32)
        hidden_BxS = ACTIVATIONS[self.act](nn.Dense(self.squeeze, dtype=self.dtype, name="reduce")(pooled_BxC))
        gate_BxC = GATES[self.gate](nn.Dense(x_BxHxWxC.shape[-1], dtype=self.dtype, name="expand")(hidden_BxS))
        return x_BxHxWxC * gate_BxC[:, None, None, :]


class Residual(nn.Module):
    """A block of any table: its convolutions, which a route may synthesize, and the shortcut added to their output."""

    block: BlockKind
    conventions: Conventions = Conventions()
    dtype: DTypeLike = jnp.float32
    pallas_kernels: bool = False

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, route: Route, train: bool) -> jax.Array:
        """Maps [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), block.out]."""
        block, inputs, how = self.block, x_BxHxWxC, self.conventions

        def convolve(conv: Conv, x: jax.Array | Normalized) -> Normalized:
            coefficients_BxGxN = route(f"{self.name}/{conv.kind}", value_of(x), inputs)
            shape = conv.out, conv.side, conv.stride, conv.depthwise
            layer = Convolution(*shape, how.padding, self.dtype, self.pallas_kernels, name=conv.kind)
            return Norm(conv.act, how.epsilon, self.dtype, name=f"{conv.kind}_norm")(
                layer(x, coefficients_BxGxN), train
            )

        x: jax.Array | Normalized = inputs
        same_shape = block.stride == 1 and block.out == inputs.shape[-1]
        shortcut = inputs if block.adds_input and same_shape else None
        for conv in block.convolutions(inputs.shape[-1]):
            if conv.kind == "shortcut":
                shortcut = value_of(convolve(conv, inputs))
                continue
            x = convolve(conv, x)
            if conv.se:
                squeeze = how.squeeze(inputs.shape[-1], conv.out)
                gated = SqueezeExcite(squeeze, how.squeeze_act, how.gate, dtype=self.dtype, name="squeeze_excite")
                x = gated(value_of(x))
        y = value_of(x) if shortcut is None else value_of(x) + shortcut
        return ACTIVATIONS[block.last_act](y) if block.last_act else y


@struct.dataclass
class BackboneOutputs:
    """The outputs of a backbone: its last feature map's average, the vector that its classifier sees, and its logits.

    The two vectors are in the backbone's dtype, and the same where the architecture has no dense layer in its head.
    """

    pooled_BxP: jax.Array
    features_BxD: jax.Array
    logits_BxK: jax.Array  # float32


class Backbone(nn.Module):
    """A backbone: images -> logits, and the vectors that they come from."""

    architecture: Architecture
    num_classes: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    pallas_kernels: bool = False

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, route: Route, train: bool) -> BackboneOutputs:
        """Maps [B, H, W, C] in [-1, 1] -> logits [B, K], and vectors [B, P] and [B, D]."""
        table, how, dtype = self.architecture, self.architecture.conventions, self.dtype
        stem = Convolution(
            table.stem, table.stem_side, table.stem_stride, padding=how.padding, dtype=dtype, name="stem"
        )
        x = stem(_normalized(images_BxHxWxC, how))
        x = value_of(Norm(table.stem_act, how.epsilon, dtype=dtype, name="stem_norm")(x, train))
        if table.stem_pool:
            sides = [taps.pads(size, 3, 2, how.padding)[:2] for size in x.shape[1:3]]
            x = nn.max_pool(x, (3, 3), (2, 2), sides)
        for name, _, block in table.named_blocks():
            x = Residual(block, how, dtype, self.pallas_kernels, name=name)(x, route, train)
        if table.head_conv:
            head_conv = Convolution(table.head_conv, dtype=dtype, name="head_conv")
            x = head_conv(x, route("head_conv", x, x))
            x = value_of(Norm(table.head_act, how.epsilon, dtype=dtype, name="head_norm")(x, train))
        pooled_BxP = x_BxD = global_average(x).astype(dtype)
        if table.head_dense:
            head_dense = Dense(table.head_dense, dtype=dtype, name="head_dense")
            x_BxD = ACTIVATIONS[table.head_act](head_dense(x_BxD, route("head_dense", x_BxD, x_BxD)))
        kept_BxD = nn.Dropout(self.dropout, deterministic=not train)(x_BxD)
        classifier = Dense(self.num_classes, name="classifier")
        return BackboneOutputs(pooled_BxP, x_BxD, classifier(kept_BxD, route("classifier", x_BxD, x_BxD)))


def _normalized(images_BxHxWxC: jax.Array, conventions: Conventions) -> jax.Array:
    """Normalizes images in [-1, 1] for the network. Raises UserError if it takes another number of channels."""
    mean, std = (np.asarray(x, np.float32) for x in (conventions.input_mean, conventions.input_std))
    if mean.size not in (1, images_BxHxWxC.shape[-1]):
        raise UserError(
            f"images with {images_BxHxWxC.shape[-1]} channels do not fit a backbone that normalizes {mean.size} "
            "channels; choose another backbone."
        )
    return images_BxHxWxC if (mean == 0).all() and (std == 1).all() else (images_BxHxWxC - mean) / std
