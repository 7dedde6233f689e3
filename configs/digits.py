"""BasisNet on scikit-learn's digits: 1,297 images to train on, 500 to evaluate, of 8x8 pixels.

    python -m basisnet_jax.main --config=configs/digits.py

Hardware: two CPU cores. Time and top-1: README.md.
"""

import ml_collections

from basisnet_jax.config import default


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of the default."""
    config = default()
    config.batch_size = 32
    config.epochs = 40.0
    config.eval_every_epochs = 10.0
    config.checkpoint.every_epochs = 10.0
    config.warm_start_epochs = 10.0
    config.data.max_shift = 3
    config.data.max_rotation = 10.0
    config.model.specialist.resolution = 24
    config.model.preview.resolution = 12
    config.optimizer.learning_rate = 8e-3
    config.schedule.warmup_epochs = 4.0
    return config
