"""EfficientNet-B0 alone on ImageNet: 385.8M multiply-adds, 5.29M parameters.

The specialist of imagenet_efficientnet_b0.py with plain kernels, under the same recipe.

    python -m basisnet_jax.main --config=configs/imagenet_efficientnet_b0_static.py

Hardware: made for a pod slice of TPUs; has run on none yet. Hours: unknown until somebody measures.
Claims: the EfficientNet paper (arXiv 1905.11946) reports 77.1% top-1 with its own recipe; ours has not been run.
"""

import ml_collections

from configs import imagenet_efficientnet_b0


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of imagenet_efficientnet_b0.py."""
    config = imagenet_efficientnet_b0.get_config()
    config.model.routing = "static"
    return config
