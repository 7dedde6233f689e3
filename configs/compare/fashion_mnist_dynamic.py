"""Dynamic convolution on Fashion-MNIST: 1,432,568 multiply-adds, 217,574 parameters.

One of four networks at equal multiply-adds (within 2%) under the recipe of compare/recipe.py, N = 4.
As in its paper, the temperature falls from 30 to 1, here in the recipe's warm start.

    python -m basisnet_jax.main --config=configs/compare/fashion_mnist_dynamic.py --config.seed=0

Hardware: two CPU cores. Time and top-1: docs/results.md.
"""

import ml_collections

from configs.compare import recipe


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of recipe.py."""
    config = recipe.get_config()
    config.model.update(routing="dynamic", temperature=1.0, start_temperature=30.0)
    config.model.specialist.width = 1.04
    return config
