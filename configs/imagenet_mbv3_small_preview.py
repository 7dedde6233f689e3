"""As imagenet_mbv3.py, preview 0.5 wide: 261.5M multiply-adds an image, 27.7M parameters.

Ours: the preview costs 24.1M instead of 52.6M, so that early termination saves more and knows less.

    python -m basisnet_jax.main --config=configs/imagenet_mbv3_small_preview.py

Hardware: made for a pod slice of TPUs; has run on none yet. Hours: unknown until somebody measures.
Claims: nothing published; ours has not been run.
"""

import ml_collections

from configs import imagenet_mbv3


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of imagenet_mbv3.py."""
    config = imagenet_mbv3.get_config()
    config.model.preview.width = 0.5
    return config
