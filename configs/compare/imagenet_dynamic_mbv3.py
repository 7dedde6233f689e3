"""Dynamic convolution in MobileNetV3-Large on ImageNet: 223.3M multiply-adds, 11.0M parameters.

Four kernels a convolution of the blocks, the temperature from 30 to 1; the recipe is imagenet_mbv3.py's.

    python -m basisnet_jax.main --config=configs/compare/imagenet_dynamic_mbv3.py

Hardware: made for a pod slice of TPUs; has run on none yet. Hours: unknown until somebody measures.
Claims: published (arXiv 1912.03458) are 77.1% top-1
at 228M with another recipe; ours has not been run.
"""

import ml_collections

from configs import imagenet_mbv3


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of imagenet_mbv3.py."""
    config = imagenet_mbv3.get_config()
    config.warm_start_epochs = 10.0
    config.model.update(routing="dynamic", num_bases=4, temperature=1.0, start_temperature=30.0)
    config.model.specialist.backbone = "mobilenet_v3_large"
    return config
