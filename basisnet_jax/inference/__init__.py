"""Inference with trained networks: the preview sees every image, the specialist those that need it."""

from basisnet_jax.inference.jax_classifier import TwoStageClassifier
from basisnet_jax.serving.image_files import predict_files, table

__all__ = ["TwoStageClassifier", "predict_files", "table"]
