"""The TPU's kernels, interpreted on CPU, against plain loops; and compiled for TPUs where libtpu is installed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from basisnet_jax.aot.topology import devices_of
from basisnet_jax.host.mesh import make_mesh, with_mesh_in_context
from basisnet_jax.ops import pallas_common, pallas_pointwise, synthesis
from tests.ops.test_synthesis import assert_close, depthwise_loop, pointwise_loop, value_and_gradients


def interpret_kernels(monkeypatch):
    """Has Pallas interpret every kernel; yields once, and fails if none ran until then."""
    pallas_call, names = pallas_common.pl.pallas_call, []

    def interpret(*args, name, **kwargs):
        names.append(name)
        return pallas_call(*args, name=name, interpret=True, **kwargs)

    monkeypatch.setattr(pallas_common.pl, "pallas_call", interpret)
    yield
    assert names, "no kernel ran"


@pytest.fixture
def interpreted(monkeypatch):
    """`synthesis` takes the TPU's forms, and their kernels are interpreted; a batch need not fill the lanes."""
    monkeypatch.setattr(
        synthesis.lax, "platform_dependent", lambda *args, default, tpu=None, **other: (tpu or default)(*args)
    )
    monkeypatch.setattr(pallas_common, "reason_unsupported", lambda *args: None)
    monkeypatch.setattr(pallas_pointwise, "FEWEST_PIXELS", 1)
    yield from interpret_kernels(monkeypatch)


def draw(*shapes, dtype):
    rng = np.random.default_rng(0)
    # Through the dtype once, so that both sides see the same numbers.
    return [np.asarray(jnp.asarray(rng.normal(size=shape), dtype), np.float64) for shape in shapes]


CASES = [
    # side, stride, size, padding, dtype, bytes of VMEM: little has one block for few rows and 8 channels
    (3, 1, (6, 6), "same", jnp.float32, 2**23),
    (3, 1, (7, 12), "symmetric", jnp.bfloat16, 2**20),
    (3, 2, (6, 6), "same", jnp.bfloat16, 2**20),
    (3, 2, (11, 7), "same", jnp.float32, 2**20),
    (5, 1, (7, 5), "same", jnp.float32, 2**20),
    (5, 2, (8, 10), "symmetric", jnp.float32, 2**20),
    (5, 2, (7, 5), "same", jnp.bfloat16, 2**20),
    (7, 2, (7, 9), "same", jnp.float32, 2**23),
]


@pytest.mark.parametrize(("side", "stride", "size", "padding", "dtype", "vmem"), CASES)
def test_depthwise_equals_a_loop(interpreted, monkeypatch, side, stride, size, padding, dtype, vmem):
    monkeypatch.setattr(pallas_common, "VMEM", vmem)
    output = tuple(-(-n // stride) for n in size)
    x, bases, dy = draw((2, *size, 16), (2, side, side, 16), (2, *output, 16), dtype=dtype)
    coefficients = np.array([[0.75, 0.25], [0.125, 0.875]])
    inputs = jnp.asarray(x, dtype), jnp.asarray(bases, dtype), jnp.asarray(coefficients, jnp.float32)
    layer = functools.partial(synthesis.depthwise, stride=stride, padding=padding, pallas_kernels=True)
    got = value_and_gradients(layer, inputs, jnp.asarray(dy, dtype))
    assert got[0].dtype == got[1].dtype == dtype
    assert_close(got, depthwise_loop(x, bases, coefficients, stride, dy, padding), dtype)


def test_a_norm_before_the_convolution_is_computed_on_the_way(interpreted, monkeypatch):
    """Value and all gradients, those of the norm among them, at an odd height; the activation has a kink."""
    monkeypatch.setattr(pallas_common, "VMEM", 2**20)
    x, kernel, dy, mean, scale, bias = draw(
        (2, 7, 6, 16), (2, 3, 3, 16), (2, 4, 3, 16), (16,), (16,), (16,), dtype=jnp.float32
    )

    def layer(x, kernels, *norm, pallas_kernels):
        normalized = synthesis.Normalized(x, *norm, nn.hard_swish)
        return synthesis.depthwise(normalized, kernels, jnp.eye(2), 2, pallas_kernels=pallas_kernels)

    inputs = [jnp.asarray(a, jnp.float32) for a in (x, kernel, mean, scale, bias)]
    dy = jnp.asarray(dy, jnp.float32)
    got = value_and_gradients(functools.partial(layer, pallas_kernels=True), inputs, dy)
    monkeypatch.undo()
    expected = value_and_gradients(functools.partial(layer, pallas_kernels=False), inputs, dy)
    for a, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * np.abs(e).max())


def test_static_depthwise_equals_a_loop(interpreted):
    x, kernel, dy = draw((2, 6, 7, 8), (1, 3, 3, 8), (2, 3, 4, 8), dtype=jnp.float32)
    layer = functools.partial(synthesis.static_depthwise, stride=2, pallas_kernels=True)
    inputs = jnp.asarray(x, jnp.float32), jnp.asarray(kernel[0], jnp.float32)
    y, dx, dkernel = value_and_gradients(layer, inputs, jnp.asarray(dy, jnp.float32))
    expected = depthwise_loop(x, kernel, np.ones((2, 1)), 2, dy)
    assert_close((y, dx, dkernel[None]), expected, jnp.float32)


@pytest.mark.parametrize(("dtype", "vmem"), [(jnp.float32, 2**20), (jnp.bfloat16, 2**23)])
def test_pointwise_equals_a_loop(interpreted, monkeypatch, dtype, vmem):
    monkeypatch.setattr(pallas_common, "VMEM", vmem)
    x, bases, dy = draw((2, 4, 7, 16), (2, 16, 24), (2, 4, 7, 24), dtype=dtype)
    coefficients = np.array([[0.75, 0.25], [0.125, 0.875]])
    inputs = jnp.asarray(x, dtype), jnp.asarray(bases, dtype), jnp.asarray(coefficients, jnp.float32)
    got = value_and_gradients(lambda *args: synthesis.pointwise(*args, True), inputs, jnp.asarray(dy, dtype))
    assert_close(got, pointwise_loop(x, bases, coefficients, dy), dtype)


def test_eight_devices_equal_one_and_gather_nothing(interpreted, monkeypatch):
    shapes = (8, 4, 4, 8), (3, 3, 3, 8), (3, 8, 16), (8, 3)
    inputs = [jnp.asarray(a, jnp.float32) for a in draw(*shapes, dtype=jnp.float32)]

    def gradients(x, depthwise, pointwise, coefficients):
        def loss(*args):
            x, depthwise, pointwise, coefficients = args
            x = synthesis.depthwise(x, depthwise, coefficients, 1, pallas_kernels=True)
            return jnp.sum(synthesis.pointwise(x, pointwise, coefficients, True) ** 2)

        return jax.grad(loss, argnums=(0, 1, 2, 3))(x, depthwise, pointwise, coefficients)

    mesh = make_mesh(jax.devices(), fsdp=2)
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec(("data", "fsdp")), PartitionSpec()))
    shardings = (split, whole, whole, split)
    compiled = jax.jit(with_mesh_in_context(mesh, gradients), in_shardings=shardings).lower(*inputs).compile()
    assert "all-gather" not in compiled.as_text()
    sharded = compiled(*(jax.device_put(a, s) for a, s in zip(inputs, shardings, strict=True)))
    for got, expected in zip(sharded, jax.jit(gradients)(*inputs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_unfit_says_why_by_the_images_of_a_device():
    assert not pallas_common.reason_unsupported(256, jnp.bfloat16, 16, 24)
    assert "12 channels" in pallas_common.reason_unsupported(256, jnp.float32, 12)
    assert "float16" in pallas_common.reason_unsupported(256, jnp.dtype("float16"), 16)
    mesh = make_mesh(jax.devices())
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert "256 images on 8 device(s)" in pallas_common.reason_unsupported(256, jnp.float32, 16)
        assert not pallas_common.reason_unsupported(1024, jnp.float32, 16)


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_compiles_for_tpus(topology):
    """On four chips of each generation, the batch split over them: the kernels are used, nothing gathers the batch."""
    pytest.importorskip("libtpu")
    mesh = make_mesh(devices_of(topology)[0], fsdp=2)
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec(("data", "fsdp")), PartitionSpec()))

    def gradients(x, depthwise, pointwise, coefficients):
        def loss(*args):
            x, depthwise, pointwise, coefficients = args
            x = synthesis.pointwise(x, pointwise, coefficients, True)
            x = synthesis.depthwise(x, depthwise, coefficients, 2, pallas_kernels=True)
            return jnp.sum(synthesis.static_depthwise(x, depthwise[0], 1, pallas_kernels=True) ** 2)

        return jax.grad(loss, argnums=(0, 1, 2, 3))(x, depthwise, pointwise, coefficients)

    for dtype, side in ((jnp.bfloat16, 5), (jnp.float32, 3)):
        batch = 128 * mesh.size  # the lanes of each device
        shapes = (batch, 29, 29, 16), (4, side, side, 24), (4, 16, 24), (batch, 4)
        dtypes = dtype, dtype, dtype, jnp.float32
        arguments = [jax.ShapeDtypeStruct(*a) for a in zip(shapes, dtypes, strict=True)]
        step = jax.jit(with_mesh_in_context(mesh, gradients), in_shardings=(split, whole, whole, split))
        text = step.lower(*arguments).compile().as_text()
        assert text.count('custom_call_target="tpu_custom_call"') == 5
        assert "all-gather" not in text
