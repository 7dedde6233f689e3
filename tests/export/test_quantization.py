"""Smaller .tflite files, and the forms in which LiteRT gets synthesized layers and the preview's small image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from flax import linen as nn

from basisnet_jax.export import by_tensorflow, litert, phone_layers, phone_resize, quantization
from basisnet_jax.models import basisnet
from basisnet_jax.models.layers import Convolution
from basisnet_jax.serving.tflite import LiteRTStage


@pytest.fixture(params=["TensorFlow", "litert-converter"])
def to_tflite(request):
    """Each converter, and the quantizer."""
    if request.param == "TensorFlow":
        pytest.importorskip("tensorflow")
        convert = by_tensorflow.to_tflite
    else:
        pytest.importorskip("litert_converter", reason="pip install -e '.[litert]'")
        convert = litert.from_stablehlo

    def converted(function, inputs, outputs, kind="", examples=()):
        content = convert(function, inputs, outputs)
        return quantization.quantized(content, kind, examples) if kind else content

    return converted


@pytest.mark.parametrize(
    ("side", "stride", "depthwise", "rows"),
    [(1, 1, False, 1), (1, 2, False, 4), (3, 2, False, 1), (5, 2, True, 4)],
)
@pytest.mark.parametrize("groups", [(0, 0, 0, 0, 0, 0), (0, 1, 1, 2, 3, 3)])
def test_a_layer_of_one_image_equals_a_loop(side, stride, depthwise, rows, groups):
    rng = np.random.default_rng(0)
    layer = Convolution(6, side, stride, depthwise)
    x = rng.normal(size=(1, 7, 9, 6 if depthwise else 4)).astype(np.float32)
    coefficients = rng.dirichlet(np.ones(3), (1, max(groups) + 1)).astype(np.float32)
    variables = jax.jit(layer.init)(jax.random.key(0), x, coefficients)
    with nn.intercept_methods(phone_layers.interceptor(rows)):
        got = np.asarray(layer.apply(variables, jnp.asarray(x), jnp.asarray(coefficients)))

    bases = np.asarray(variables["params"]["bases"]).reshape(3, side, side, -1, 6)
    kernel = np.stack([np.tensordot(coefficients[0, group], bases[..., o], 1) for o, group in enumerate(groups)], -1)
    before = [max((-(-n // stride) - 1) * stride + side - n, 0) // 2 for n in (7, 9)]
    padded = np.pad(x[0], ((before[0], side), (before[1], side), (0, 0)))
    for row, column in np.ndindex(got.shape[1:3]):
        window = padded[row * stride :, column * stride :][:side, :side]
        per_input = window[..., None] * kernel if not depthwise else window[:, :, None] * kernel
        np.testing.assert_allclose(got[0, row, column], per_input.sum((0, 1, 2)), atol=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "side", "products"),
    [
        (28, 35, 14, False),
        (224, 112, 128, False),
        (12, 30, 18, False),
        (8, 28, 6, True),
        (28, 28, 13, True),
        (9, 9, 9, True),
    ],
)
def test_the_small_image_is_the_one_that_the_preview_was_trained_on(height, width, side, products):
    images = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    resize = jax.jit(phone_resize.resize, static_argnums=1)
    np.testing.assert_allclose(resize(images, side), basisnet.resize(jnp.asarray(images), side), atol=1e-5)
    assert ("convolution" not in resize.lower(images, side).as_text()) == products


@pytest.mark.parametrize(
    ("kind", "size", "error"), [("float16", 0.55, 1e-3), ("int8_weights", 0.35, 0.02), ("int8", 0.35, 0.05)]
)
def test_a_quantized_file_is_smaller_and_answers_about_the_same(kind, size, error, to_tflite):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(64, 256)).astype(np.float32)
    images = rng.uniform(-1, 1, (20, 1, 64)).astype(np.float32)

    def convert(kind):
        examples = [{"image": image} for image in images]
        return to_tflite(lambda image: jnp.maximum(image @ kernel, 0), {"image": (1, 64)}, ("logits",), kind, examples)

    content = convert(kind)
    assert len(content) < size * len(convert(""))
    (got,) = LiteRTStage(content)(images[:, 0])
    expected = np.maximum(images[:, 0] @ kernel, 0)
    assert 0 < np.abs(got - expected).max() < error * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["int8_weights", "int8"])
def test_depthwise_kernels_stay_float32(kind, to_tflite):
    """LiteRT's fast path has no depthwise convolution of floats by int8; in int8 they would lose most."""
    rng = np.random.default_rng(0)
    layer = Convolution(192, 3, depthwise=True)
    image = rng.normal(size=(1, 5, 5, 192)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 192)).astype(np.float32)

    def convolve(image):
        with nn.intercept_methods(phone_layers.interceptor()):
            return layer.apply({"params": {"kernel": kernel}}, image)

    content = to_tflite(convolve, {"image": image.shape}, ("logits",), kind, [{"image": image}])
    padded = np.pad(image[0], ((1, 1), (1, 1), (0, 0)))
    (got,) = LiteRTStage(content)(image)
    for row, column in np.ndindex(5, 5):
        expected = (padded[row : row + 3, column : column + 3] * kernel).sum((0, 1))
        np.testing.assert_allclose(got[0, row, column], expected, atol=1e-5)


@pytest.mark.parametrize("channels", [3, 8])
def test_a_convolution_of_features_takes_and_gives_int8_and_one_of_pixels_does_not(channels, to_tflite):
    rng = np.random.default_rng(0)
    layer = Convolution(16, 3)
    image = rng.normal(size=(1, 5, 5, channels)).astype(np.float32)
    variables = jax.jit(layer.init)(jax.random.key(0), image)
    content = to_tflite(
        functools.partial(layer.apply, variables), {"image": image.shape}, ("logits",), "int8", [{"image": image}]
    )
    tensors = Interpreter(model_content=content).get_tensor_details()
    in_int8 = {tuple(tensor["shape"]) for tensor in tensors if tensor["dtype"] == np.int8}
    assert in_int8 == ({(1, 5, 5, 8), (16, 3, 3, 8), (1, 5, 5, 16)} if channels == 8 else set())


@pytest.mark.parametrize("kind", ["int8_weights", "int8"])
def test_the_small_image_stays_float32(kind, to_tflite):
    """It is made by products whose first matrix is constant, and LiteRT cannot run these with int8."""
    image = np.random.default_rng(0).normal(size=(1, 32, 32, 1)).astype(np.float32)
    content = to_tflite(functools.partial(phone_resize.resize, side=10), {"image": image.shape}, ("logits",), kind)
    np.testing.assert_allclose(LiteRTStage(content)(image)[0], basisnet.resize(jnp.asarray(image), 10), atol=1e-5)


def test_four_weights_of_a_base_share_a_scale_in_files_of_int8_weights_alone(to_tflite):
    """What a base has for a weight is an output channel of a dense layer; 12 bytes of scale and sums go with each."""
    rng = np.random.default_rng(0)
    coefficients = rng.dirichlet(np.ones(4), 1).astype(np.float32)
    bases = rng.normal(size=(4, 32, 24)).astype(np.float32)
    kernel = np.tensordot(coefficients[0], bases, 1)
    np.testing.assert_allclose(phone_layers.synthesize(coefficients, bases, rows=4), kernel, atol=1e-6)
    for kind, rows in (("int8_weights", 4), ("", 1)):
        synthesize = functools.partial(phone_layers.synthesize, bases_Nx=bases, rows=quantization.ROWS.get(kind, 1))
        content = to_tflite(synthesize, {"coefficients": (1, 4)}, ("logits",), kind)
        tensors = Interpreter(model_content=content).get_tensor_details()
        (weights,) = (tensor for tensor in tensors if np.prod(tensor["shape"]) == bases.size)
        assert tuple(weights["shape"]) == (kernel.size // rows, 4 * rows)
        assert len(weights["quantization_parameters"]["scales"]) == (kernel.size // rows if kind else 0)


def test_both_converters_make_files_that_answer_alike():
    """So that an export does not depend on which is installed."""
    for module in ("litert_converter", "tensorflow"):
        pytest.importorskip(module)
    rng = np.random.default_rng(0)
    layer, image = Convolution(8, 3, stride=2), rng.normal(size=(1, 9, 9, 4)).astype(np.float32)
    params = layer.init(jax.random.key(0), image)

    def pooled(image):
        return jax.nn.hard_swish(layer.apply(params, image)).mean((1, 2)), image[:, 0, 0]

    arguments = pooled, {"image": image.shape}, ("logits", "coefficients")
    ours, theirs = (LiteRTStage(make(*arguments)) for make in (litert.from_stablehlo, by_tensorflow.to_tflite))
    assert (ours.inputs, ours.outputs) == (theirs.inputs, theirs.outputs)
    for got, expected in zip(ours(image), theirs(image), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_file_says_nothing_of_the_machine_that_made_it():
    pytest.importorskip("litert_converter", reason="pip install -e '.[litert]'")
    content = litert.from_stablehlo(jnp.sin, {"image": (1, 4)}, ("logits",))
    assert content == litert.from_stablehlo(jnp.sin, {"image": (1, 4)}, ("logits",))
    assert b".py" not in content
