"""Metrics as sums and counts (CLU's), so that batches, hosts and devices add up to the same figure."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics

from basisnet_jax.models.basisnet import Outputs

Metrics = dict[str, clu_metrics.Average]


def measure(outputs: Outputs, labels_B: jax.Array, mask_B: jax.Array) -> Metrics:
    """Measures top-1, top-5 and cross entropy over the images whose mask is 1, and two metrics of a preview.

    `coefficient_entropy` is the coefficients' mean entropy over log N: 1 is uniform, 0 is one basis alone.
    """
    values_B = {
        "top1": correct(outputs.logits_BxK, labels_B),
        "top5": correct(outputs.logits_BxK, labels_B, k=5),
        "loss": optax.softmax_cross_entropy_with_integer_labels(outputs.logits_BxK, labels_B),
    }
    if outputs.preview_logits_BxK is not None and outputs.coefficients_BxLxN is not None:
        values_B["preview_top1"] = correct(outputs.preview_logits_BxK, labels_B)
        coefficients_BxLxN = outputs.coefficients_BxLxN
        entropy_BxL = jnp.sum(jax.scipy.special.entr(coefficients_BxLxN), axis=-1)
        log_bases = jnp.log(max(coefficients_BxLxN.shape[-1], 2))
        values_B["coefficient_entropy"] = jnp.mean(entropy_BxL, axis=-1) / log_bases
    return {name: clu_metrics.Average.from_model_output(value_B, mask_B) for name, value_B in values_B.items()}


def merge(first: Metrics | None, second: Metrics) -> Metrics:
    """Returns the metrics over both sets of images."""
    return second if first is None else {name: first[name].merge(second[name]) for name in second}


def correct(logits_BxK: jax.Array, labels_B: jax.Array, k: int = 1) -> jax.Array:
    """Returns float32[B]: 1.0 where the label is among the k largest logits. A tie counts against the label."""
    label_logit_Bx1 = jnp.take_along_axis(logits_BxK, labels_B[:, None], axis=-1)
    others_BxK = jnp.arange(logits_BxK.shape[-1]) != labels_B[:, None]
    # Written as not less than: comparisons with NaN are false, so NaN logits count as ahead of the label.
    ahead_B = jnp.sum(~(logits_BxK < label_logit_Bx1) & others_BxK, axis=-1)
    return (ahead_B < k).astype(jnp.float32)


def is_correct(logits_NxK: np.ndarray, labels_N: np.ndarray, k: int = 1) -> np.ndarray:
    """Returns float64[N]: `correct`, as an array on the host."""
    return np.asarray(correct(jnp.asarray(logits_NxK), jnp.asarray(labels_N), k), np.float64)
