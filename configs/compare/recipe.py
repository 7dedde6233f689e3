"""The recipe under which systems are compared on Fashion-MNIST: that of configs/fashion_mnist.py, in 6 epochs."""

import ml_collections

from configs import fashion_mnist


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of fashion_mnist.py."""
    config = fashion_mnist.get_config()
    config.epochs = 6.0
    config.eval_every_epochs = 3.0
    config.warm_start_epochs = 1.5
    config.schedule.warmup_epochs = 0.75
    return config
