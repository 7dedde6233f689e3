"""BasisNet on ImageNet, its bases started from a static MobileNetV3-Large: 290.0M multiply-adds, 29.0M parameters.

imagenet_mbv3.py in a fifth of its epochs. Every basis begins as the kernel of the run of imagenet_mbv3_static.py, plus
noise that sums to zero, so with the uniform coefficients of the warm start it begins as that network. Several runs
(of other seeds) give their kernels to the bases in turn: --config.model.specialist.start_from=runs/a,runs/b.

    python -m basisnet_jax.main --config=configs/imagenet_mbv3_static.py
    python -m basisnet_jax.main --config=configs/imagenet_mbv3_finetune.py

Hardware: made for a pod slice of TPUs; has run on none yet. Hours: unknown until somebody measures.
Claims: nobody's; ours has not been run.
"""

import ml_collections

from configs import imagenet_mbv3


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of imagenet_mbv3.py."""
    config = imagenet_mbv3.get_config()
    config.epochs = 70.0
    config.warm_start_epochs = 10.0
    config.optimizer.learning_rate = 2e-3
    config.model.specialist.start_from = "runs/imagenet_mbv3_static"
    return config
