"""Convolution, norm and activation, squeeze-excite, inverted residual, and the backbone that stacks them.

Parameters are float32; `dtype` is what the layers compute in. Batch norm's statistics and the logits are float32.
Under jit, batch norm over a sharded batch is over the global batch.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from basisnet_jax.errors import UserError
from basisnet_jax.models import synthesis
from basisnet_jax.models.backbones import Architecture, Block, Conventions
from basisnet_jax.models.routing import Route

ACTIVATIONS = {"relu": nn.relu, "relu6": nn.relu6, "hard_swish": nn.hard_swish, "swish": nn.swish}
GATES = {"hard_sigmoid": nn.hard_sigmoid, "sigmoid": nn.sigmoid}


class Convolution(nn.Module):
    """Convolution without bias: plain, or synthesized if it is given coefficients. `padding` is `synthesis.pads`'s.

    Its parameter is `kernel`, or `bases` with a leading axis of N: each basis is drawn on its own, normal with
    variance 2 / fan_out of the single kernel. `tpu_kernels` is `synthesis`'s.
    """

    features: int
    side: int = 1
    stride: int = 1
    depthwise: bool = False
    padding: str = "same"
    dtype: jnp.dtype = jnp.float32
    tpu_kernels: bool = False

    @nn.compact
    def __call__(self, x_BxHxWxI: jax.Array, coefficients_BxN: jax.Array | None = None) -> jax.Array:
        """[B, H, W, I] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        shape = (
            *((self.side, self.side) if self.side > 1 else ()),
            *(() if self.depthwise else (x_BxHxWxI.shape[-1],)),
            self.features,
        )
        fan_out = self.side**2 * (1 if self.depthwise else self.features)
        initializer = nn.initializers.normal((2.0 / fan_out) ** 0.5)
        x_BxHxWxI = x_BxHxWxI.astype(self.dtype)
        if coefficients_BxN is None:
            kernel = self.param("kernel", initializer, shape).astype(self.dtype)
            return self._plain(x_BxHxWxI, kernel)
        bases = self.param("bases", initializer, (coefficients_BxN.shape[-1], *shape)).astype(self.dtype)
        if self.depthwise:
            return synthesis.depthwise(x_BxHxWxI, bases, coefficients_BxN, self.stride, self.padding, self.tpu_kernels)
        if self.side > 1 or self.stride > 1:
            raise ValueError(
                f"a synthesized {self.side}x{self.side} convolution with stride {self.stride} must be depthwise"
            )
        return synthesis.pointwise(x_BxHxWxI, bases, coefficients_BxN, self.tpu_kernels)

    def _plain(self, x_BxHxWxI, kernel):
        if self.depthwise:
            return synthesis.static_depthwise(x_BxHxWxI, kernel, self.stride, self.padding, self.tpu_kernels)
        kernel_KxKxIxO = kernel.reshape(self.side, self.side, *kernel.shape[-2:])
        pads = [synthesis.pads(size, self.side, self.stride, self.padding)[:2] for size in x_BxHxWxI.shape[1:3]]
        dimensions = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x_BxHxWxI, kernel_KxKxIxO, (self.stride,) * 2, pads, dimension_numbers=dimensions
        )


class Norm(nn.Module):
    """Batch norm, then an activation. Running statistics with momentum 0.99 (MobileNetV3's)."""

    act: str | None = None
    epsilon: float = 1e-3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> the same shape, in `dtype`."""
        x_BxHxWxC = nn.BatchNorm(
            use_running_average=not train, momentum=0.99, epsilon=self.epsilon, dtype=self.dtype, name="batch_norm"
        )(x_BxHxWxC)
        return ACTIVATIONS[self.act](x_BxHxWxC) if self.act else x_BxHxWxC


class SqueezeExcite(nn.Module):
    """Channels rescaled by a gate of their global average."""

    squeeze: int
    act: str = "relu"
    gate: str = "hard_sigmoid"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """[B, H, W, C] -> the same shape."""
        pooled_BxC = jnp.mean(x_BxHxWxC, axis=(1, 2), dtype=jnp.float32)
        hidden_BxS = ACTIVATIONS[self.act](nn.Dense(self.squeeze, dtype=self.dtype, name="reduce")(pooled_BxC))
        gate_BxC = GATES[self.gate](nn.Dense(x_BxHxWxC.shape[-1], dtype=self.dtype, name="expand")(hidden_BxS))
        return x_BxHxWxC * gate_BxC[:, None, None, :]


class InvertedResidual(nn.Module):
    """The bottleneck of MobileNetV2 and its heirs; its three convolutions are what a route may have synthesized."""

    block: Block
    conventions: Conventions = Conventions()
    dtype: jnp.dtype = jnp.float32
    tpu_kernels: bool = False

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, route: Route, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), block.out]."""
        block, inputs, how = self.block, x_BxHxWxC, self.conventions

        def convolve(kind: str, x: jax.Array, act: str | None, **shape) -> jax.Array:
            coefficients_BxN = route(f"{self.name}/{kind}", x)
            shared = {"padding": how.padding, "dtype": self.dtype, "tpu_kernels": self.tpu_kernels}
            x = Convolution(**shape, **shared, name=kind)(x, coefficients_BxN)
            return Norm(act, how.epsilon, dtype=self.dtype, name=f"{kind}_norm")(x, train)

        x = inputs
        if block.expand > inputs.shape[-1]:
            x = convolve("expand", x, block.act, features=block.expand)
        x = convolve(
            "depthwise", x, block.act, features=block.expand, side=block.kernel, stride=block.stride, depthwise=True
        )
        if block.se:
            squeeze = how.squeeze(inputs.shape[-1], block.expand)
            x = SqueezeExcite(squeeze, how.squeeze_act, how.gate, dtype=self.dtype, name="squeeze_excite")(x)
        x = convolve("project", x, None, features=block.out)
        return x + inputs if block.stride == 1 and block.out == inputs.shape[-1] else x


class Backbone(nn.Module):
    """Images -> (the vector that the classifier sees, logits)."""

    architecture: Architecture
    num_classes: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    tpu_kernels: bool = False

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, route: Route, train: bool) -> tuple[jax.Array, jax.Array]:
        """Args: images in [-1, 1]. Returns: features_BxD in `dtype`, logits_BxK in float32."""
        table, how, dtype = self.architecture, self.architecture.conventions, self.dtype
        stem = Convolution(table.stem, side=3, stride=table.stem_stride, padding=how.padding, dtype=dtype, name="stem")
        x = stem(_normalized(images_BxHxWxC, how))
        x = Norm(table.stem_act, how.epsilon, dtype=dtype, name="stem_norm")(x, train)
        for name, _, block in table.named_blocks():
            x = InvertedResidual(block, how, dtype, self.tpu_kernels, name=name)(x, route, train)
        x = Convolution(table.head_conv, dtype=dtype, name="head_conv")(x)
        x = Norm(table.head_act, how.epsilon, dtype=dtype, name="head_norm")(x, train)
        features_BxD = jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(dtype)
        if table.head_dense:
            features_BxD = nn.Dense(table.head_dense, dtype=dtype, name="head_dense")(features_BxD)
            features_BxD = ACTIVATIONS[table.head_act](features_BxD)
        kept_BxD = nn.Dropout(self.dropout, deterministic=not train)(features_BxD)
        return features_BxD, nn.Dense(self.num_classes, name="classifier")(kept_BxD)


def _normalized(images_BxHxWxC: jax.Array, conventions: Conventions) -> jax.Array:
    """Images in [-1, 1] as the network wants them. Raises UserError if it wants another number of channels."""
    mean, std = (np.asarray(x, np.float32) for x in (conventions.input_mean, conventions.input_std))
    if mean.size not in (1, images_BxHxWxC.shape[-1]):
        raise UserError(
            f"images with {images_BxHxWxC.shape[-1]} channels do not fit a backbone that normalizes {mean.size}; "
            "choose another backbone."
        )
    return images_BxHxWxC if (mean == 0).all() and (std == 1).all() else (images_BxHxWxC - mean) / std
