"""Quantization-aware training: rounds activations to 8 bits where the export 'int8.tflite' will round them.

The export runs convolutions in int8, except for depthwise ones, those of pixels, and synthesized ones. Weights are not
rounded in training: with a scale for each output channel their rounding costs next to nothing (int8_weights in
docs/guides/deploy.md).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from basisnet_jax.models.layers import ACTIVATIONS, Convolution, Norm
from basisnet_jax.ops.synthesis import value_of

# A convolution of so many channels or fewer sees pixels. Its outputs stay float32: see docs/lab-notes/phones.md.
PIXEL_CHANNELS = 4
FUSED = (None, "relu", "relu6")  # activations that LiteRT computes inside a convolution, before it rounds


def rounded(x: jax.Array) -> jax.Array:
    """Rounds an array to the nearest of 256 values between its smallest and its largest; the range includes zero.

    The gradient is passed on unchanged: the straight-through estimator of arXiv 1308.3432, applied to activations as
    in arXiv 1712.05877.

    Args:
      x: of any shape, float32 or bfloat16.

    Returns:
      An array of the same shape and dtype.
    """
    low, high = jnp.minimum(jnp.min(x), 0), jnp.maximum(jnp.max(x), 0)
    scale = jnp.maximum((high - low).astype(jnp.float32) / 255, jnp.finfo(jnp.float32).tiny)
    zero = jnp.round(low / scale)  # zero itself is one of the values
    steps = jnp.clip(jnp.round(x / scale), zero, zero + 255)
    return x + lax.stop_gradient((steps * scale).astype(x.dtype) - x)


@contextlib.contextmanager
def rounded_layers() -> Iterator[None]:
    """Rounds activations around convolutions in the context, as 'int8.tflite' does.

    An input is rounded before the convolution; an output where LiteRT does so: after batch norm and an activation of
    FUSED, but before another activation.
    """
    in_int8 = False  # whether the last convolution was one of those; its norm is called next

    def interceptor(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal in_int8
        module = context.module
        if isinstance(module, Convolution) and context.method_name == "__call__":
            plain = len(args) < 2 or args[1] is None
            in_int8 = plain and not module.depthwise and args[0].shape[-1] > PIXEL_CHANNELS
            return call(rounded(value_of(args[0])), *args[1:], **kwargs) if in_int8 else call(*args, **kwargs)
        if isinstance(module, Norm) and context.method_name == "__call__" and in_int8:
            output = call(*args, **kwargs)
            if module.act in FUSED:
                return rounded(output.value())
            return ACTIVATIONS[module.act](rounded(output._replace(act=lambda x: x).value()))
        return call(*args, **kwargs)

    with nn.intercept_methods(interceptor):
        yield
