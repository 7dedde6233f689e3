"""The joint loss, against NumPy; what a teacher does is in test_teacher.py."""

import numpy as np
import pytest

from basisnet_jax.models.basisnet import Outputs
from basisnet_jax.training.losses import joint_loss


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


def test_both_stages_learn_and_a_static_network_has_no_preview(batch):
    logits, preview, targets = batch
    both = cross_entropy(logits, targets) + 0.7 * cross_entropy(preview, targets)
    np.testing.assert_allclose(joint_loss(Outputs(logits, preview), targets, 0.7), both, rtol=1e-5)
    alone = joint_loss(Outputs(logits), targets, 0.7)
    np.testing.assert_allclose(alone, cross_entropy(logits, targets), rtol=1e-5)
