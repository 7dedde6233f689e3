"""The joint loss, against NumPy; what a teacher does is in test_teacher.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from basisnet_jax import step
from basisnet_jax.experiment import make_experiment
from basisnet_jax.losses import class_share, joint_loss
from basisnet_jax.mesh import batch_sharding, make_mesh
from basisnet_jax.models.basisnet import Outputs


@pytest.fixture
def batch():
    """(specialist's logits, preview's logits, one-hot targets) of six images, four classes."""
    rng = np.random.default_rng(0)
    logits, preview = rng.normal(size=(2, 6, 4)).astype(np.float32)
    return logits, 2 * preview, np.eye(4, dtype=np.float32)[rng.integers(0, 4, 6)]


def softmax(logits):
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(-1, keepdims=True)


def cross_entropy(logits, targets):
    return -(targets * np.log(softmax(logits))).sum(-1)


def numpy_class_share(coefficients, preview):
    """By a loop over the classes, in float64."""
    flat, guesses = coefficients.reshape(len(coefficients), -1).astype(np.float64), preview.argmax(-1)
    between = 0.0
    for guess in set(guesses):
        mine = flat[guesses == guess]
        between += len(mine) * np.sum((mine.mean(0) - flat.mean(0)) ** 2)
    return between / (flat.var(0).sum() * len(flat) + 1e-6 * flat.size)


def test_class_share_equals_a_loop_over_classes_on_any_mesh():
    rng = np.random.default_rng(0)
    preview = rng.normal(size=(16, 4)).astype(np.float32)
    scattered = rng.dirichlet(np.ones(3), size=(16, 5)).astype(np.float32)
    repeating = rng.dirichlet(np.ones(3), size=(4, 5)).astype(np.float32)[preview.argmax(-1)]
    mesh = make_mesh(jax.devices(), 1)
    for coefficients in (scattered, repeating, 0.3 * scattered + 0.7 * repeating):
        expected = numpy_class_share(coefficients, preview)
        both = coefficients, preview
        got = jax.jit(class_share, in_shardings=batch_sharding(mesh))(*both)
        np.testing.assert_allclose([got, class_share(*both)], expected, rtol=1e-5)
        loss = joint_loss(Outputs(preview, *both[::-1]), np.eye(4)[:1].repeat(16, 0), 1.0, class_share_weight=0.5)
        without = joint_loss(Outputs(preview, *both[::-1]), np.eye(4)[:1].repeat(16, 0), 1.0)
        np.testing.assert_allclose(loss - without, 0.5 * expected, rtol=1e-4)
    assert numpy_class_share(repeating, preview) > 0.99 > 0.5 > numpy_class_share(scattered, preview)
    assert class_share(np.full((16, 5, 3), 1 / 3, np.float32), preview) == 0.0
    gradient = jax.grad(class_share)(jnp.full((16, 5, 3), 1 / 3), preview)
    assert np.abs(gradient).max() < 1e-3


def test_both_stages_learn_and_a_static_network_has_no_preview(batch):
    logits, preview, targets = batch
    both = cross_entropy(logits, targets) + 0.7 * cross_entropy(preview, targets)
    np.testing.assert_allclose(joint_loss(Outputs(logits, preview), targets, 0.7), both, rtol=1e-5)
    alone = joint_loss(Outputs(logits), targets, 0.7)
    np.testing.assert_allclose(alone, cross_entropy(logits, targets), rtol=1e-5)


def test_the_settings_reach_the_step(config, monkeypatch):
    given = []

    def noted(model, optimizer, schedule, settings, *rest):
        given.append(settings)
        return lambda state, batch, schedule, teacher: (state, batch)

    monkeypatch.setattr(step, "make_train_step", noted)
    make_experiment(config).train_step()
    config.loss.class_share_weight = 0.2
    make_experiment(config).train_step()
    assert [settings.class_share_weight for settings in given] == [0.0, 0.2]
