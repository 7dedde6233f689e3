"""BasisNet on ImageNet with EfficientNet-B0 as both stages.

Ours: the specialist is B0 1.0 at 224, the preview B0 0.5 at 128, N = 16, one vector of coefficients a block.

    python -m basisnet_jax.main --config=configs/imagenet_efficientnet_b0.py

Hardware: made for a pod slice of TPUs; has run on none yet. Hours: unknown until somebody measures.
Claims: nothing published; ours has not been run.
"""

import ml_collections

from configs import imagenet_mbv3


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of imagenet_mbv3.py."""
    config = imagenet_mbv3.get_config()
    config.model.specialist.backbone = "efficientnet_b0"
    config.model.preview.update(backbone="efficientnet_b0", width=0.5)
    return config
