"""Every form of a synthesized layer against plain loops over images in NumPy."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from basisnet_jax.errors import UserError
from basisnet_jax.host.mesh import batch_sharding, make_mesh, replicated
from basisnet_jax.ops import synthesis, taps


def softmax(scores):
    return np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)


def pointwise_loop(x, bases, coefficients, dy):
    """(y, dx, dbases, dcoefficients), one image after the other."""
    y, dx, dbases, dcoefficients = (
        np.zeros(dy.shape),
        np.zeros(x.shape),
        np.zeros(bases.shape),
        np.zeros(coefficients.shape),
    )
    for b in range(len(x)):
        kernel = sum(coefficients[b, n] * bases[n] for n in range(len(bases)))
        y[b], dx[b] = x[b] @ kernel, dy[b] @ kernel.T
        dkernel = sum(np.outer(x[b, i, j], dy[b, i, j]) for i, j in np.ndindex(x.shape[1:3]))
        for n in range(len(bases)):
            dbases[n] += coefficients[b, n] * dkernel
            dcoefficients[b, n] = np.sum(dkernel * bases[n])
    return y, dx, dbases, dcoefficients


def depthwise_loop(x, bases, coefficients, stride, dy, padding="same"):
    """(y, dx, dbases, dcoefficients), one image, one output pixel, one tap after the other."""
    side, (height, width) = bases.shape[1], x.shape[1:3]
    top, left = (max((-(-n // stride) - 1) * stride + side - n, 0) // 2 for n in (height, width))
    if padding == "symmetric":
        top = left = (side - 1) // 2
    y, dx, dbases, dcoefficients = (
        np.zeros(dy.shape),
        np.zeros(x.shape),
        np.zeros(bases.shape),
        np.zeros(coefficients.shape),
    )
    for b in range(len(x)):
        kernel = sum(coefficients[b, n] * bases[n] for n in range(len(bases)))
        dkernel = np.zeros(kernel.shape)
        for p, q, i, j in np.ndindex(*dy.shape[1:3], side, side):
            row, column = p * stride + i - top, q * stride + j - left
            if 0 <= row < height and 0 <= column < width:
                y[b, p, q] += x[b, row, column] * kernel[i, j]
                dx[b, row, column] += dy[b, p, q] * kernel[i, j]
                dkernel[i, j] += dy[b, p, q] * x[b, row, column]
        for n in range(len(bases)):
            dbases[n] += coefficients[b, n] * dkernel
            dcoefficients[b, n] = np.sum(dkernel * bases[n])
    return y, dx, dbases, dcoefficients


def assert_close(actual, expected, dtype):
    """Relative to the largest value: 1e-5 in float32, bfloat16's rounding in bfloat16."""
    for name, a, e in zip(("y", "dx", "dbases", "dcoefficients"), actual, expected, strict=False):
        error = np.abs(np.asarray(a, np.float64) - e).max() / np.abs(e).max()
        assert error < (1e-5 if dtype == jnp.float32 else 2e-2), f"{name} is off by {error:.1e}"


def draw(shape_x, shape_bases, dtype):
    rng = np.random.default_rng(0)
    # Through the dtype once, so that both sides see the same numbers.
    x, bases = (np.asarray(jnp.asarray(rng.normal(size=s), dtype), np.float64) for s in (shape_x, shape_bases))
    return rng, x, bases, softmax(rng.normal(size=(shape_x[0], shape_bases[0])))


def value_and_gradients(function, inputs, dy):
    """(y, the gradient of each input)."""

    @jax.jit
    def run(inputs, dy):
        y, vjp = jax.vjp(function, *inputs)
        return (y, *vjp(dy))

    return run(inputs, dy)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pointwise_equals_a_loop(dtype):
    rng, x, bases, coefficients = draw((3, 4, 5, 6), (4, 6, 7), dtype)
    dy = np.asarray(jnp.asarray(rng.normal(size=(3, 4, 5, 7)), dtype), np.float64)
    inputs = jnp.asarray(x, dtype), jnp.asarray(bases, dtype), jnp.asarray(coefficients, jnp.float32)
    expected = pointwise_loop(x, bases, coefficients, dy)
    got = value_and_gradients(synthesis.pointwise, inputs, jnp.asarray(dy, dtype))
    assert got[0].dtype == dtype
    assert_close(got, expected, dtype)
    # The forms that were not chosen here, TPU's among them.
    for forward, transposed in (
        (synthesis._batched_matmul, synthesis._batched_matmul_transposed),
        (synthesis._mix_inputs_of_groups, synthesis._mix_inputs_of_groups_transposed),
    ):
        got = forward(*inputs), transposed(jnp.asarray(dy, dtype), *inputs[1:])
        assert_close(got, expected[:2], dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("side", "stride", "size"), list(itertools.product((3, 5), (1, 2), ((6, 6), (7, 5)))))
@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_depthwise_equals_a_loop(side, stride, size, padding, dtype):
    rng, x, bases, coefficients = draw((2, *size, 3), (4, side, side, 3), dtype)
    dy = rng.normal(size=(2, -(-size[0] // stride), -(-size[1] // stride), 3))
    dy = np.asarray(jnp.asarray(dy, dtype), np.float64)
    inputs = jnp.asarray(x, dtype), jnp.asarray(bases, dtype), jnp.asarray(coefficients, jnp.float32)
    got = value_and_gradients(lambda *args: synthesis.depthwise(*args, stride, padding), inputs, jnp.asarray(dy, dtype))
    assert got[0].dtype == dtype
    assert_close(got, depthwise_loop(x, bases, coefficients, stride, dy, padding), dtype)

    def gradient(form):
        padded = taps.pad(inputs[0], side, stride, padding)
        return jax.jit(lambda padded, dy: form(padded, dy, side, stride))(padded, jnp.asarray(dy, dtype))

    by_rows, by_taps = gradient(taps._kernel_gradient_by_rows), gradient(taps._kernel_gradient_by_taps)
    np.testing.assert_allclose(by_rows, by_taps, rtol=1e-4, atol=1e-4, err_msg="the CPU's and the TPU's form differ")


def test_the_cpu_s_kernel_gradient_stays_on_its_device(monkeypatch):
    """And rows of more pixels than one fused loop takes are worked off in parts."""
    monkeypatch.setattr(taps, "_PIXELS", 4)
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((8, 7, 12, 3), (8, 5, 10, 3))]
    by_rows = jax.jit(lambda x, dy: taps._kernel_gradient_by_rows(x, dy, 3, 1))
    sharded = jax.device_put(arrays, batch_sharding(make_mesh(jax.devices(), fsdp=1)))
    program = by_rows.lower(*sharded).compile().as_text()
    assert not re.findall(r"all-\w+|collective-\w+", program), "images were sent to other devices"
    expected = taps._kernel_gradient_by_taps(*arrays, 3, 1)
    np.testing.assert_allclose(by_rows(*sharded), expected, rtol=1e-4, atol=1e-4)


def dense_loop(x, bases, coefficients, stride, dy, padding):
    """As `depthwise_loop`, of a convolution that mixes the channels."""
    side, (height, width) = bases.shape[1], x.shape[1:3]
    top, left = (max((-(-n // stride) - 1) * stride + side - n, 0) // 2 for n in (height, width))
    if padding == "symmetric":
        top = left = (side - 1) // 2
    y, dx, dbases, dcoefficients = (np.zeros(array.shape) for array in (dy, x, bases, coefficients))
    for b in range(len(x)):
        kernel = sum(coefficients[b, n] * bases[n] for n in range(len(bases)))
        dkernel = np.zeros(kernel.shape)
        for p, q, i, j in np.ndindex(*dy.shape[1:3], side, side):
            row, column = p * stride + i - top, q * stride + j - left
            if 0 <= row < height and 0 <= column < width:
                y[b, p, q] += x[b, row, column] @ kernel[i, j]
                dx[b, row, column] += kernel[i, j] @ dy[b, p, q]
                dkernel[i, j] += np.outer(x[b, row, column], dy[b, p, q])
        for n in range(len(bases)):
            dbases[n] += coefficients[b, n] * dkernel
            dcoefficients[b, n] = np.sum(dkernel * bases[n])
    return y, dx, dbases, dcoefficients


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
    ("stride", "padding", "dtype"),
    [(1, "same", jnp.float32), (2, "same", jnp.float32), (2, "symmetric", jnp.float32), (2, "same", jnp.bfloat16)],
)
def test_dense_equals_a_loop_when_sharded_too(stride, padding, dtype, devices):
    rng, x, bases, coefficients = draw((8, 7, 6, 3), (4, 3, 3, 3, 5), dtype)
    dy = np.asarray(jnp.asarray(rng.normal(size=(8, -(-7 // stride), -(-6 // stride), 5)), dtype), np.float64)
    mesh = make_mesh(jax.devices()[:devices], fsdp=1)
    sharded, whole = batch_sharding(mesh), replicated(mesh)
    arrays = jnp.asarray(x, dtype), jnp.asarray(bases, dtype), jnp.asarray(coefficients, jnp.float32)
    inputs = jax.device_put(arrays, (sharded, whole, sharded))
    got = value_and_gradients(
        lambda *args: synthesis.dense(*args, stride, padding), inputs, jax.device_put(jnp.asarray(dy, dtype), sharded)
    )
    assert got[0].dtype == dtype
    assert_close(got, dense_loop(x, bases, coefficients, stride, dy, padding), dtype)


@pytest.mark.parametrize(("side", "stride"), list(itertools.product((3, 5), (1, 2))))
@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_static_depthwise_equals_a_loop_on_every_platform(side, stride, padding):
    rng, x, bases, _ = draw((2, 7, 6, 3), (1, side, side, 3), jnp.float32)
    dy = rng.normal(size=(2, -(-7 // stride), -(-6 // stride), 3))
    y, dx, dkernel, _ = depthwise_loop(x, bases, np.ones((2, 1)), stride, dy, padding)
    forms = {"chosen": lambda x, k: synthesis.static_depthwise(x, k[0], stride, padding)}
    forms["XLA's"] = lambda x, k: synthesis.xla_depthwise(x, k, stride, padding)
    for form in forms.values():
        inputs = jnp.asarray(x, jnp.float32), jnp.asarray(bases, jnp.float32)
        got = value_and_gradients(form, inputs, jnp.asarray(dy, jnp.float32))
        assert_close(got, (y, dx, dkernel), jnp.float32)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("shape", [(8, 7, 6), (8, 11, 11)])
def test_depthwise_in_blocks_of_channels_equals_a_loop_when_sharded_too(shape, devices):
    """Two blocks of 80 channels; the larger image is not computed in blocks."""
    stride = 1
    rng, x, bases, coefficients = draw((*shape, 160), (2, 5, 5, 160), jnp.float32)
    dy = rng.normal(size=x.shape).astype(np.float32)
    mesh = make_mesh(jax.devices()[:devices], fsdp=1)
    sharded, whole = batch_sharding(mesh), replicated(mesh)
    arrays = (jnp.asarray(a, jnp.float32) for a in (x, bases, coefficients))
    inputs = jax.device_put(tuple(arrays), (sharded, whole, sharded))
    got = value_and_gradients(
        lambda *args: synthesis.depthwise(*args, stride), inputs, jax.device_put(jnp.asarray(dy), sharded)
    )
    assert_close(got, depthwise_loop(x, bases, coefficients, stride, dy), jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("devices", [1, 8])
def test_static_pointwise_equals_a_loop_when_sharded_too(dtype, devices):
    rng, x, bases, _ = draw((8, 3, 5, 6), (1, 6, 4), dtype)
    dy = np.asarray(jnp.asarray(rng.normal(size=(8, 3, 5, 4)), dtype), np.float64)
    y, dx, dbases, _ = pointwise_loop(x, bases, np.ones((8, 1)), dy)
    mesh = make_mesh(jax.devices()[:devices], fsdp=1)
    sharded, whole = batch_sharding(mesh), replicated(mesh)
    inputs = jax.device_put((jnp.asarray(x, dtype), jnp.asarray(bases[0], dtype)), (sharded, whole))
    got = value_and_gradients(synthesis.static_pointwise, inputs, jax.device_put(jnp.asarray(dy, dtype), sharded))
    assert got[0].dtype == dtype
    assert_close(got, (y, dx, dbases[0]), dtype)


def by_channel(form, x, bases, coefficients, groups, depthwise):
    """Computes a layer whose output channels have coefficients of their own, one channel after the other."""
    channels = [
        form(x[..., o : o + 1] if depthwise else x, bases[..., o : o + 1], coefficients[:, group])
        for o, group in enumerate(groups)
    ]
    return jnp.concatenate(channels, -1)


@pytest.mark.parametrize("layer", ["pointwise", "pointwise_on_tpu", "dense", "depthwise"])
def test_groups_of_channels_have_coefficients_of_their_own(layer, monkeypatch):
    """Seven channels in three groups: two, two and three."""
    if layer == "pointwise_on_tpu":
        monkeypatch.setattr(
            synthesis.lax, "platform_dependent", lambda *args, **forms: forms.get("tpu", forms["default"])(*args)
        )
    form, shape = {
        "dense": (lambda *args: synthesis.dense(*args, 2, "same"), (3, 3, 6, 7)),
        "depthwise": (lambda *args: synthesis.depthwise(*args, 2), (3, 3, 7)),
    }.get(layer, (synthesis.pointwise, (6, 7)))
    rng, depthwise = np.random.default_rng(0), layer == "depthwise"
    sizes = (8, 6, 6, 7 if depthwise else 6), (4, *shape), (8, 3, 4)
    x, bases, coefficients = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes)
    loop = partial(by_channel, form, groups=(0, 0, 1, 1, 2, 2, 2), depthwise=depthwise)
    dy = jnp.asarray(rng.normal(size=jax.eval_shape(form, x, bases, coefficients).shape), jnp.float32)
    expected = value_and_gradients(loop, (x, bases, coefficients), dy)
    assert_close(value_and_gradients(form, (x, bases, coefficients), dy), expected, jnp.float32)
    with pytest.raises(UserError, match="channel_groups = 8: a layer to synthesize has 7 output channels"):
        form(x, bases, jnp.ones((8, 8, 4)))


@pytest.mark.parametrize("shape", [(16, 3), (3, 8), (5, 5, 4), (8,)])
def test_gradients_of_combined_kernels_equal_a_loop_on_gpus_too(monkeypatch, shape):
    """A GPU sums the gradient of the coefficients in parts."""
    rng = np.random.default_rng(0)
    coefficients, bases, dkernels = rng.random((3, 2)), rng.random((2, *shape)), rng.random((3, *shape))
    wanted = [[np.sum(dkernel * basis) for basis in bases] for dkernel in dkernels]
    wanted_bases = [sum(c * dkernel for c, dkernel in zip(row, dkernels, strict=True)) for row in coefficients.T]
    for form in ("default", "cuda"):
        monkeypatch.setattr(synthesis.lax, "platform_dependent", lambda *args, form=form, **forms: forms[form](*args))
        kernels, gradients = jax.vjp(synthesis.combine, *(jnp.asarray(x, jnp.float32) for x in (coefficients, bases)))
        np.testing.assert_allclose(kernels, np.einsum("bn,n...->b...", coefficients, bases), rtol=1e-5)
        for got, expected in zip(gradients(jnp.asarray(dkernels, jnp.float32)), (wanted, wanted_bases), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("basis", [0, 2])
def test_one_hot_coefficients_are_that_basis(basis):
    _, x, bases, _ = draw((2, 5, 5, 6), (3, 6, 4), jnp.float32)
    onehot = jax.nn.one_hot(jnp.full(2, basis), 3)
    got = synthesis.pointwise(jnp.asarray(x, jnp.float32), jnp.asarray(bases, jnp.float32), onehot)
    np.testing.assert_allclose(got, x @ bases[basis], rtol=1e-5, atol=1e-5)
    _, x, bases, _ = draw((2, 5, 5, 6), (3, 3, 3, 6), jnp.float32)
    x, bases = jnp.asarray(x, jnp.float32), jnp.asarray(bases, jnp.float32)
    got = synthesis.depthwise(x, bases, onehot, 2)
    np.testing.assert_allclose(got, synthesis.static_depthwise(x, bases[basis], 2), rtol=1e-5, atol=1e-5)


def test_coefficients_mix_softmax_and_uniform():
    scores = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    for mix in (0.0, 0.25, 1.0):
        got = synthesis.combination_coefficients(jnp.asarray(scores), temperature=2.0, uniform_mix=mix)
        np.testing.assert_allclose(got, mix / 4 + (1 - mix) * softmax(scores / 2.0), rtol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_lowering_for_a_platform_takes_its_form(platform):
    """Also when a TPU's program is made on a CPU host: mixing inputs is one product without a batch axis."""
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8, 4, 4, 6), (3, 6, 5), (8, 3))]
    text = jax.jit(synthesis.pointwise).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    assert ("batching_dims = [0] x [0]" in text) == (platform == "cpu")
    static = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8, 4, 4, 6), (6, 5))]
    text = jax.jit(synthesis.static_pointwise).trace(*static).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in text) == (platform == "tpu")
