"""ResNet-50 on ImageNet: 4,089M multiply-adds, 25.6M parameters.

The plain network of torchvision, with the stride in the 3x3 convolutions; the recipe is imagenet_mbv3.py's.

    python -m basisnet_jax.main --config=configs/compare/imagenet_resnet50_static.py

Hardware: made for a pod slice of TPUs; has run on none yet. Hours: unknown until somebody measures.
Claims: torchvision reports 76.1% top-1 with its first recipe; ours has not been run.
"""

import ml_collections

from configs import imagenet_mbv3


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of imagenet_mbv3.py."""
    config = imagenet_mbv3.get_config()
    config.model.routing = "static"
    config.model.specialist.backbone = "resnet50"
    return config
