"""CondConv-EfficientNet-B0 on ImageNet: 407.2M multiply-adds, 24.0M parameters.

Eight experts in the last three stages of blocks; the recipe is imagenet_mbv3.py's.

    python -m basisnet_jax.main --config=configs/compare/imagenet_condconv_efficientnet_b0.py

Hardware: made for a pod slice of TPUs; has run on none yet. Hours: unknown until somebody measures.
Claims: the CondConv paper (arXiv 1904.04971) reports 78.3% top-1
at 413M, where more than kernels is counted (README, Counting), with its own recipe; ours has not been run.
"""

import ml_collections

from configs import imagenet_mbv3


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of imagenet_mbv3.py."""
    config = imagenet_mbv3.get_config()
    config.warm_start_epochs = 0.0  # its sigmoids start at a half
    config.model.update(routing="condconv", num_bases=8, synthesize_from_block=8)
    config.model.specialist.backbone = "efficientnet_b0"
    return config
