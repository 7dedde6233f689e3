"""Inference with trained networks: the preview sees every image, the specialist those that need it."""

from basisnet_jax.inference.image_files import predict_files, table
from basisnet_jax.inference.jax_classifier import TwoStageClassifier

__all__ = ["TwoStageClassifier", "predict_files", "table"]
