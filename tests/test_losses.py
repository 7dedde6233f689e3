"""What the stages do for each other in the loss, against NumPy; what a teacher does is in test_teacher.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from basisnet_jax import step
from basisnet_jax.experiment import make_experiment
from basisnet_jax.losses import Distillation, doubt_weights, joint_loss
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


def test_doubt_weighs_the_specialist_and_no_one_learns_through_it(batch):
    logits, preview, targets = batch
    doubt = 1 - softmax(preview).max(-1)
    weights = doubt / doubt.mean()
    np.testing.assert_allclose(doubt_weights(preview), weights, rtol=1e-5)
    got = joint_loss(Outputs(logits, preview), targets, 0.7, doubt=0.4)
    expected = (0.6 + 0.4 * weights) * cross_entropy(logits, targets) + 0.7 * cross_entropy(preview, targets)
    np.testing.assert_allclose(got, expected, rtol=1e-5)

    def total(preview, doubt):
        return jnp.sum(joint_loss(Outputs(jnp.asarray(logits), preview), targets, 0.7, doubt=doubt))

    np.testing.assert_array_equal(jax.grad(total)(preview, 0.4), jax.grad(total)(preview, 0.0))


def test_a_preview_that_doubts_nothing_gives_finite_weights():
    assert np.isfinite(doubt_weights(jnp.array([[1e4, 0.0], [0.0, 1e4]]))).all()


def test_the_preview_learns_from_the_specialist_and_not_the_other_way(batch):
    logits, preview, targets = batch
    own = Distillation(0.3, 2.0)
    got = joint_loss(Outputs(logits, preview), targets, 0.7, self_distillation=own)
    teacher, student = softmax(logits / 2), softmax(preview / 2)
    divergence = (teacher * np.log(teacher / student)).sum(-1)
    followed = 0.7 * cross_entropy(preview, targets) + 0.3 * 4 * divergence
    np.testing.assert_allclose(got, cross_entropy(logits, targets) + 0.7 * followed, rtol=1e-4)

    def total(logits, own):
        return jnp.sum(joint_loss(Outputs(logits, jnp.asarray(preview)), targets, 0.7, self_distillation=own))

    np.testing.assert_array_equal(jax.grad(total)(logits, own), jax.grad(total)(logits, None))


def test_both_are_off_by_default_and_a_static_network_has_neither(batch):
    logits, _, targets = batch
    alone = joint_loss(Outputs(logits), targets, 1.0, doubt=1.0, self_distillation=Distillation(1.0, 1.0))
    np.testing.assert_allclose(alone, cross_entropy(logits, targets), rtol=1e-5)


def test_the_settings_reach_the_step(config, monkeypatch):
    given = []

    def noted(model, optimizer, schedule, settings, *rest):
        given.append(settings)
        return lambda state, batch, teacher: (state, batch)

    monkeypatch.setattr(step, "make_train_step", noted)
    make_experiment(config).train_step()
    config.loss.update(doubt=0.5, self_distill_weight=0.25, self_distill_temperature=3.0)
    make_experiment(config).train_step()
    assert (given[0].doubt, given[0].self_distillation) == (0.0, None)
    assert (given[1].doubt, given[1].self_distillation) == (0.5, Distillation(0.25, 3.0))
