"""The GPU's depthwise kernels, interpreted on CPU, against plain loops; and lowered or compiled for GPUs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from basisnet_jax.host.mesh import make_mesh, with_mesh_in_context
from basisnet_jax.ops import pallas_depthwise_gpu, synthesis
from basisnet_jax.ops.pallas_depthwise import Window
from tests.ops.test_pallas_tpu import draw, interpret_kernels
from tests.ops.test_synthesis import assert_close, depthwise_loop

COEFFICIENTS = np.array([[0.75, 0.25], [0.125, 0.875]])


@pytest.fixture
def interpreted(monkeypatch):
    """`synthesis` takes the GPU's form; its kernels are interpreted, with blocks that are smaller than the images."""
    monkeypatch.setattr(
        synthesis.lax, "platform_dependent", lambda *args, default, cuda=None, **_: (cuda or default)(*args)
    )
    block = pallas_depthwise_gpu.Block(rows=2, columns=4, channels=16, warps=1)
    monkeypatch.setattr(pallas_depthwise_gpu, "block_of", lambda *_, **__: block)
    monkeypatch.setattr(pallas_depthwise_gpu, "PROGRAMS", 12)  # so that an image's sums are in several parts
    monkeypatch.setattr(pallas_depthwise_gpu, "multiply_add", lambda a, b, c: a * b + c)  # no assembly on a CPU
    yield from interpret_kernels(monkeypatch)


def value_and_gradients(function, inputs, dy):
    """(y, the gradient of each input); compiled without optimization, which takes longer than the tiny arrays."""

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(inputs, dy):
        y, vjp = jax.vjp(function, *inputs)
        return (y, *vjp(dy))

    return run(inputs, dy)


CASES = [
    # side, stride, size, channels, padding, dtype
    (3, 1, (7, 9), 20, "same", jnp.float32),
    (3, 2, (6, 5), 3, "same", jnp.bfloat16),
    (3, 2, (5, 8), 8, "symmetric", jnp.float32),
    (3, 3, (7, 5), 17, "same", jnp.float32),
    (5, 1, (3, 5), 4, "same", jnp.bfloat16),
    (5, 2, (7, 6), 18, "symmetric", jnp.float32),
]


@pytest.mark.parametrize(("side", "stride", "size", "channels", "padding", "dtype"), CASES)
def test_depthwise_equals_a_loop(interpreted, side, stride, size, channels, padding, dtype):
    output = tuple(-(-n // stride) for n in size)
    shapes = (2, *size, channels), (2, side, side, channels), (2, *output, channels)
    x, bases, dy = draw(*shapes, dtype=dtype)
    inputs = jnp.asarray(x, dtype), jnp.asarray(bases, dtype), jnp.asarray(COEFFICIENTS, jnp.float32)
    layer = functools.partial(synthesis.depthwise, stride=stride, padding=padding, pallas_kernels=True)
    got = value_and_gradients(layer, inputs, jnp.asarray(dy, dtype))
    assert got[0].dtype == got[1].dtype == dtype
    assert_close(got, depthwise_loop(x, bases, COEFFICIENTS, stride, dy, padding), dtype)


@pytest.mark.parametrize(("act", "stride"), [(nn.hard_swish, 2), (nn.swish, 1)])
def test_a_norm_before_the_convolution_is_computed_on_the_way(interpreted, monkeypatch, act, stride):
    """Value and all gradients, those of the norm among them; a pixel outside the image is 0 and not act(shift)."""
    size, channels = (5, 6), 18
    output = tuple(-(-n // stride) for n in size)
    shapes = (2, *size, channels), (2, 3, 3, channels), *[(channels,)] * 3, (2, *output, channels)
    x, kernels, mean, scale, bias, dy = draw(*shapes, dtype=jnp.float32)
    inputs = [jnp.asarray(a, jnp.float32) for a in (x, kernels, mean, scale, bias)]

    def layer(x, kernels, *norm):
        normalized = synthesis.Normalized(x, *norm, act)
        return synthesis.depthwise(normalized, kernels, jnp.eye(2), stride, pallas_kernels=True)

    got = value_and_gradients(layer, inputs, jnp.asarray(dy, jnp.float32))
    z = (x - mean) * scale + bias
    activated, act_vjp = jax.vjp(act, jnp.asarray(z, jnp.float32))
    activated = np.asarray(activated, np.float64)
    y, dactivated, dkernels, _ = depthwise_loop(activated, kernels, np.eye(2), stride, dy)
    dz = np.asarray(act_vjp(jnp.asarray(dactivated, jnp.float32))[0], np.float64)
    sums = [np.sum(array, axis=(0, 1, 2)) for array in (-dz * scale, dz * (x - mean), dz)]
    for name, a, e in zip(
        ("y", "dx", "dkernels", "dmean", "dscale", "dbias"), got, (y, dz * scale, dkernels, *sums), strict=True
    ):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5 * np.abs(e).max(), err_msg=name)


def test_static_depthwise_equals_a_loop(interpreted):
    x, kernel, dy = draw((2, 6, 7, 8), (1, 3, 3, 8), (2, 3, 4, 8), dtype=jnp.float32)
    layer = functools.partial(synthesis.static_depthwise, stride=2, pallas_kernels=True)
    inputs = jnp.asarray(x, jnp.float32), jnp.asarray(kernel[0], jnp.float32)
    y, dx, dkernel = value_and_gradients(layer, inputs, jnp.asarray(dy, jnp.float32))
    expected = depthwise_loop(x, kernel, np.ones((2, 1)), 2, dy)
    assert_close((y, dx, dkernel[None]), expected, jnp.float32)


def layers(x, bases, kernel, coefficients, *norm):
    """Loss of a synthesized layer with a norm before it, then a static layer."""
    x = synthesis.Normalized(x, *norm, nn.hard_swish)
    x = synthesis.depthwise(x, bases, coefficients, 2, pallas_kernels=True)
    return jnp.sum(synthesis.static_depthwise(x, kernel, 1, pallas_kernels=True).astype(jnp.float32) ** 2)


def shapes_and_shardings(mesh, batch, size, channels):
    """(shapes, shardings) of the arguments of `layers`: the batch is split over the mesh."""
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec(mesh.axis_names), PartitionSpec()))
    shapes = (batch, size, size, channels), (3, 5, 5, channels), (3, 3, channels), (batch, 3), *[(channels,)] * 3
    return shapes, (split, whole, whole, split, whole, whole, whole)


def test_eight_devices_equal_one_and_gather_nothing(interpreted):
    mesh = make_mesh(jax.devices(), fsdp=2)
    shapes, shardings = shapes_and_shardings(mesh, batch=8, size=4, channels=4)
    inputs = [jnp.asarray(a, jnp.float32) for a in draw(*shapes, dtype=jnp.float32)]
    gradients = jax.grad(layers, argnums=range(7))
    options = {"compiler_options": {"xla_backend_optimization_level": 0}}
    step = jax.jit(with_mesh_in_context(mesh, gradients), in_shardings=shardings, **options)
    compiled = step.lower(*inputs).compile()
    assert "all-gather" not in compiled.as_text()
    sharded = compiled(*(jax.device_put(a, s) for a, s in zip(inputs, shardings, strict=True)))
    for got, expected in zip(sharded, jax.jit(gradients, **options)(*inputs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_lowers_for_nvidia_gpus_and_not_for_others():
    """Two layers, forward and backward: four kernels on CUDA, none on ROCm; the kernels are not compiled."""
    h100 = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((1,), ("data",), axis_types=auto, abstract_device=h100)
    shapes, _ = shapes_and_shardings(make_mesh(jax.devices()[:1]), batch=2, size=9, channels=20)
    dtypes = [jnp.bfloat16] * 3 + [jnp.float32] * 4
    arguments = [jax.ShapeDtypeStruct(*a) for a in zip(shapes, dtypes, strict=True)]

    def lowered(platform):
        with jax.sharding.use_abstract_mesh(mesh):
            step = jax.jit(jax.value_and_grad(layers, argnums=range(7)))
            return step.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()

    assert lowered("cuda").count("@__gpu$xla.gpu.triton") == 4
    assert "triton" not in lowered("rocm")


def test_unsupported_layers_say_why():
    window = Window((8, 8), (8, 8), (1, 1), 3, 1)
    array = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    assert pallas_depthwise_gpu.reason_unsupported(array((3, 8, 8, 5)), window) is None
    assert "9 x 9" in pallas_depthwise_gpu.reason_unsupported(array((3, 8, 8, 5)), window._replace(side=9))
    with jax.sharding.use_abstract_mesh(make_mesh(jax.devices()).abstract_mesh):
        assert "3 images" in pallas_depthwise_gpu.reason_unsupported(array((3, 8, 8, 5)), window)
    float16 = jax.ShapeDtypeStruct((3, 8, 8, 5), jnp.float16)
    assert "float16" in pallas_depthwise_gpu.reason_unsupported(float16, window)


@pytest.mark.parametrize("size", [7, 14, 28, 56, 112])
@pytest.mark.parametrize("channels", [72, 120, 672, 960])
@pytest.mark.parametrize(("most_rows", "elements"), [(8, 4), (4, 4), (2, 2), (2, 1)])
def test_blocks_are_of_powers_of_two_and_waste_at_most_half(size, channels, most_rows, elements):
    rows, columns, block_channels, warps = pallas_depthwise_gpu.block_of(size, size, channels, most_rows, elements)
    assert columns * block_channels == 32 * elements * warps
    assert 1 <= rows <= most_rows
    assert 2 <= warps <= 8
    covered = np.prod([-(-n // b) * b for n, b in ((size, rows), (size, columns), (channels, block_channels))])
    assert covered <= 2 * size * size * channels
