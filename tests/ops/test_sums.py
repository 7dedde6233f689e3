"""Sums of several arrays at once, as CPUs and as NVIDIA GPUs compute them, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from basisnet_jax.host.mesh import batch_sharding, make_mesh, with_mesh_in_context
from basisnet_jax.ops import sums


@pytest.fixture(params=["default", "cuda"])
def platform(request, monkeypatch):
    monkeypatch.setattr(sums.lax, "platform_dependent", lambda *args, **forms: forms[request.param](*args))


@pytest.mark.parametrize("devices", [1, 8])
def test_sums_and_gradients_equal_numpys(platform, devices):
    terms = np.random.default_rng(0).normal(size=(2, 8, 3, 5, 6)).astype(np.float32)
    mesh = make_mesh(jax.devices()[:devices])
    sharded = jax.device_put(list(terms), batch_sharding(mesh))

    def weighted(x, y):
        first, second = sums.channel_sums(x, y)
        return jnp.sum(first) + 3 * jnp.sum(second**2)

    step = jax.jit(with_mesh_in_context(mesh, jax.value_and_grad(weighted, (0, 1)))).lower(*sharded).compile()
    assert "all-gather" not in step.as_text(), "the parts of the devices must be summed, not gathered"
    value, (dx, dy) = step(*sharded)
    first, second = terms.sum((1, 2, 3), dtype=np.float64)
    np.testing.assert_allclose(value, first.sum() + 3 * np.sum(second**2), rtol=1e-5)
    np.testing.assert_array_equal(dx, np.ones_like(terms[0]))
    np.testing.assert_allclose(dy, np.broadcast_to(6 * second, terms[1].shape), rtol=1e-4, atol=1e-4)
