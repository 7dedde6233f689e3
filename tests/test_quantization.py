"""Smaller .tflite files, and the form in which LiteRT gets synthesized layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from basisnet_jax.export import one_image, quantization
from basisnet_jax.export.litert import to_tflite
from basisnet_jax.models.blocks import Convolution
from basisnet_jax.runtime import load_tflite


@pytest.mark.parametrize(("side", "stride", "depthwise"), [(1, 1, False), (1, 2, False), (3, 2, False), (5, 2, True)])
def test_a_layer_of_one_image_equals_a_loop(side, stride, depthwise):
    rng = np.random.default_rng(0)
    layer = Convolution(6, side, stride, depthwise)
    x = rng.normal(size=(1, 7, 9, 6 if depthwise else 4)).astype(np.float32)
    coefficients = rng.dirichlet(np.ones(3), 1).astype(np.float32)
    variables = jax.jit(layer.init)(jax.random.key(0), x, coefficients)
    with nn.intercept_methods(one_image.convolution):
        got = np.asarray(layer.apply(variables, jnp.asarray(x), jnp.asarray(coefficients)))

    kernel = np.tensordot(coefficients[0], np.asarray(variables["params"]["bases"]), 1)
    kernel = kernel.reshape(side, side, -1, 6)
    before = [max((-(-n // stride) - 1) * stride + side - n, 0) // 2 for n in (7, 9)]
    padded = np.pad(x[0], ((before[0], side), (before[1], side), (0, 0)))
    for row, column in np.ndindex(got.shape[1:3]):
        window = padded[row * stride :, column * stride :][:side, :side]
        per_input = window[..., None] * kernel if not depthwise else window[:, :, None] * kernel
        np.testing.assert_allclose(got[0, row, column], per_input.sum((0, 1, 2)), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "size", "error"), [("float16", 0.55, 1e-3), ("int8_weights", 0.35, 0.02), ("int8", 0.35, 0.05)]
)
def test_a_quantized_file_is_smaller_and_answers_about_the_same(kind, size, error):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(64, 256)).astype(np.float32)
    images = rng.uniform(-1, 1, (20, 1, 64)).astype(np.float32)

    def convert(kind):
        quantize = quantization.quantizer(kind, [{"image": image} for image in images])
        return to_tflite(lambda image: jnp.maximum(image @ kernel, 0), {"image": (1, 64)}, ("logits",), quantize)

    content = convert(kind)
    assert len(content) < size * len(convert(""))
    (got,) = load_tflite(content)(images[:, 0])
    expected = np.maximum(images[:, 0] @ kernel, 0)
    assert 0 < np.abs(got - expected).max() < error * np.abs(expected).max()
