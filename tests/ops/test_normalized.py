"""Batch norm with its activation, and all gradients, against formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from basisnet_jax.host.mesh import batch_sharding, make_mesh, replicated
from basisnet_jax.ops.normalized import Normalized

# {activation: (itself, its derivative)}
ACTIVATIONS = {
    nn.relu: (lambda z: np.maximum(z, 0), lambda z: 1.0 * (z > 0)),
    nn.hard_swish: (
        lambda z: z * np.clip(z / 6 + 0.5, 0, 1),
        lambda z: np.clip(z / 6 + 0.5, 0, 1) + z / 6 * (np.abs(z) < 3),
    ),
}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_value_and_gradients_equal_the_formulas(act, devices, dtype, tolerance):
    rng = np.random.default_rng(0)
    x, dy = (np.asarray(jnp.asarray(rng.normal(size=(8, 5, 7, 6)), dtype), np.float64) for _ in range(2))
    mean, scale, bias = (rng.normal(size=6).astype(np.float32) for _ in range(3))
    value, derivative = ACTIVATIONS[act]
    before_act = (x - mean) * scale + bias
    if dtype == jnp.bfloat16:  # the kinks of an activation are where the rounded number has them
        before_act = np.asarray(jnp.asarray(before_act, dtype), np.float64)
    g = dy * derivative(before_act)
    sums = [np.sum(term, axis=(0, 1, 2)) for term in (-g * scale, g * (x - mean), g)]

    mesh = make_mesh(jax.devices()[:devices], fsdp=1)
    sharded, whole = batch_sharding(mesh), replicated(mesh)
    inputs = jax.device_put((jnp.asarray(x, dtype), mean, scale, bias), (sharded, whole, whole, whole))

    @jax.jit
    def value_and_gradients(dy, *inputs):
        y, vjp = jax.vjp(lambda *arrays: Normalized(*arrays, act).value(), *inputs)
        return y, *vjp(dy)

    got = value_and_gradients(jax.device_put(jnp.asarray(dy, dtype), sharded), *inputs)
    assert got[0].dtype == got[1].dtype == dtype
    for actual, expected in zip(got, (value(before_act), g * scale, *sums), strict=True):
        np.testing.assert_allclose(
            np.asarray(actual, np.float64), expected, rtol=tolerance, atol=tolerance * np.abs(expected).max()
        )
