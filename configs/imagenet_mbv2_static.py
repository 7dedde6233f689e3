"""MobileNetV2 alone on ImageNet: 300.8M multiply-adds, 3.50M parameters.

The specialist of imagenet_mbv2.py with plain kernels, under the same recipe.

    python -m basisnet_jax.main --config=configs/imagenet_mbv2_static.py

Hardware: made for a pod slice of TPUs; has run on none yet. Hours: unknown until somebody measures.
Claims: the MobileNetV2 paper (arXiv 1801.04381) reports 72.0% top-1 with its own recipe; ours has not been run.
"""

import ml_collections

from configs import imagenet_mbv2


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of imagenet_mbv2.py."""
    config = imagenet_mbv2.get_config()
    config.model.routing = "static"
    return config
