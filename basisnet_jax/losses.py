"""The loss: CE(specialist) + lambda * CE(preview)."""

import jax
import jax.numpy as jnp
import optax

from basisnet_jax.models.basisnet import Outputs


def smoothed_targets(labels_B: jax.Array, num_classes: int, label_smoothing: float = 0.0) -> jax.Array:
    """Target probabilities, float32[B, K]; `label_smoothing` of each is spread over all classes."""
    return optax.smooth_labels(jax.nn.one_hot(labels_B, num_classes), label_smoothing)


def joint_loss(outputs: Outputs, targets_BxK: jax.Array, preview_weight: float) -> jax.Array:
    """The training loss of each image, float32[B]; a static network has no second term."""
    loss_B = optax.softmax_cross_entropy(outputs.logits_BxK, targets_BxK)
    if outputs.preview_logits_BxK is not None:
        loss_B += preview_weight * optax.softmax_cross_entropy(outputs.preview_logits_BxK, targets_BxK)
    return loss_B


def correct(logits_BxK: jax.Array, labels_B: jax.Array, k: int = 1) -> jax.Array:
    """1.0 where the label is among the k largest logits, float32[B]. A tie counts against the label."""
    label_logit_Bx1 = jnp.take_along_axis(logits_BxK, labels_B[:, None], axis=-1)
    others_BxK = jnp.arange(logits_BxK.shape[-1]) != labels_B[:, None]
    # NaN compares false, so its order must not be taken for a good one.
    ahead_B = jnp.sum(~(logits_BxK < label_logit_Bx1) & others_BxK, axis=-1)
    return (ahead_B < k).astype(jnp.float32)
