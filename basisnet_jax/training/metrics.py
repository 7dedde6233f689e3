"""Metrics as sums and counts (CLU's), so that batches, hosts and devices add up to the same figure."""

import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics

from basisnet_jax.models.basisnet import Outputs
from basisnet_jax.training.losses import correct

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
