"""The recipe under which systems are compared on Fashion-MNIST: that of configs/fashion_mnist.py, in 4 epochs."""

import ml_collections

from configs import fashion_mnist


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of fashion_mnist.py."""
    config = fashion_mnist.get_config()
    config.epochs = 4.0
    config.eval_every_epochs = 2.0
    config.warm_start_epochs = 1.0
    config.schedule.warmup_epochs = 0.5
    return config
