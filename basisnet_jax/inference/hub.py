"""Trained networks that travel: opened from a folder."""

from basisnet_jax.inference.jax_classifier import TwoStageClassifier


def from_pretrained(folder: str, threshold: float | None = None) -> TwoStageClassifier:
    """Opens a trained network that `--mode=export` wrote in the format 'safetensors'.

    Args:
      folder: a run's `export/` or `specialized/`, or a copy.
      threshold: an image exits where its largest softmax probability is at least this; None takes the rule that
        --mode=evaluate chose.

    Returns:
      A classifier: `classify` takes uint8[B, side, side, channels].

    Raises:
      UserError: the folder has no such export, is damaged, or has no rule and no threshold is given.
    """
    return TwoStageClassifier.from_pretrained(folder, threshold)
