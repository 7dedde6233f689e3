"""BasisNet on Fashion-MNIST: 60,000 images to train on, 10,000 to evaluate, of 28x28 pixels.

    python -m basisnet_jax.main --config=configs/fashion_mnist.py

Hardware: two CPU cores. Time and top-1: README.md.
"""

import ml_collections

from basisnet_jax.config import default


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of the default."""
    config = default()
    config.batch_size = 64
    config.epochs = 15.0
    config.log_every_steps = 100
    config.eval_every_epochs = 2.0
    config.warm_start_epochs = 5.0
    config.data.name = "fashion_mnist"
    config.data.flip = True
    config.data.max_shift = 2
    config.model.specialist.resolution = 28
    config.model.preview.resolution = 14
    config.optimizer.learning_rate = 8e-3
    config.schedule.warmup_epochs = 2.0
    return config
