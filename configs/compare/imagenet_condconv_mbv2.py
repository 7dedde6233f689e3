"""CondConv-MobileNetV2 on ImageNet: 328.1M multiply-adds, 27.5M parameters.

Eight experts from block 6 to the end, the classifier included; the recipe is imagenet_mbv3.py's.

    python -m basisnet_jax.main --config=configs/compare/imagenet_condconv_mbv2.py

Hardware: made for a pod slice of TPUs; has run on none yet. Hours: unknown until somebody measures.
Claims: the CondConv paper (arXiv 1904.04971) reports 74.6% top-1
at 329M with its own recipe; ours has not been run.
"""

import ml_collections

from configs import imagenet_mbv3


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of imagenet_mbv3.py."""
    config = imagenet_mbv3.get_config()
    config.warm_start_epochs = 0.0  # its sigmoids start at a half
    config.model.update(routing="condconv", num_bases=8, synthesize_from_block=6)
    config.model.synthesize = ("blocks", "head_conv", "classifier")
    config.model.specialist.backbone = "mobilenet_v2"
    return config
