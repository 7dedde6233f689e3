"""MobileNetV3-Large alone on ImageNet: 216.6M multiply-adds, 5.48M parameters.

The specialist of imagenet_mbv3.py with plain kernels, under the same recipe.

    python -m basisnet_jax.main --config=configs/imagenet_mbv3_static.py

Hardware: made for a pod slice of TPUs; has run on none yet. Hours: unknown until somebody measures.
Claims: the MobileNetV3 paper (arXiv 1905.02244) reports 75.2% top-1 with its own recipe; ours has not been run.
"""

import ml_collections

from configs import imagenet_mbv3


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of imagenet_mbv3.py."""
    config = imagenet_mbv3.get_config()
    config.model.routing = "static"
    return config
