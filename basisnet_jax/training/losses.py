"""The loss: CE(specialist) + lambda * CE(preview), and what a teacher adds to each."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from basisnet_jax.models.basisnet import Outputs


def smoothed_targets(labels_B: jax.Array, num_classes: int, label_smoothing: float = 0.0) -> jax.Array:
    """Returns float32[B, K]: target probabilities, a share `label_smoothing` of each spread over all classes."""
    return optax.smooth_labels(jax.nn.one_hot(labels_B, num_classes), label_smoothing)


TEACHER_LABELS = ("soft", "hard")  # what the student learns from: the teacher's probabilities, or its class


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The distillation loss: (1 - weight) CE(label) + weight T^2 KL(teacher || student), the KL's softmaxes at T.

    Hinton, Vinyals and Dean (arXiv 1503.02531); hard labels as in DeiT (arXiv 2012.12877).
    """

    weight: float  # weight of the teacher's term, in [0, 1]
    temperature: float  # T: both softmaxes are of logits / T
    hard: bool = False  # the teacher's class is the target instead of its probabilities; T is 1

    def targets(self, teacher_logits_BxK: jax.Array) -> jax.Array:
        """Returns float32[B, K]: the probabilities that the student should predict at temperature T."""
        logits_BxK = teacher_logits_BxK.astype(jnp.float32)
        if self.hard:
            return jax.nn.one_hot(jnp.argmax(logits_BxK, axis=-1), logits_BxK.shape[-1])
        return jax.nn.softmax(logits_BxK / self.temperature)

    def loss(self, logits_BxK: jax.Array, label_loss_B: jax.Array, teacher_targets_BxK: jax.Array) -> jax.Array:
        """Returns float32[B]: the loss of each image, from the loss of its label and the teacher's `targets`."""
        temperature = 1.0 if self.hard else self.temperature
        divergence_B = optax.losses.kl_divergence(jax.nn.log_softmax(logits_BxK / temperature), teacher_targets_BxK)
        return (1.0 - self.weight) * label_loss_B + self.weight * temperature**2 * divergence_B


def joint_loss(
    outputs: Outputs,
    targets_BxK: jax.Array,
    preview_weight: float,
    distillation: Distillation | None = None,
    teacher_targets_BxK: jax.Array | None = None,
) -> jax.Array:
    """Returns float32[B]: the training loss of each image; without a preview there is no preview term.

    Args:
      outputs: of the network.
      targets_BxK: probabilities.
      preview_weight: lambda.
      distillation: how both stages learn from a teacher; None without one.
      teacher_targets_BxK: `distillation.targets` of the teacher's logits.
    """

    def loss_of(logits_BxK: jax.Array) -> jax.Array:
        loss_B = optax.softmax_cross_entropy(logits_BxK, targets_BxK)
        if distillation is None or teacher_targets_BxK is None:
            return loss_B
        return distillation.loss(logits_BxK, loss_B, teacher_targets_BxK)

    loss_B = loss_of(outputs.logits_BxK)
    if outputs.preview_logits_BxK is None:
        return loss_B
    return loss_B + preview_weight * loss_of(outputs.preview_logits_BxK)
