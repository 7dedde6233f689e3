"""The plain network on Fashion-MNIST: 1,449,320 multiply-adds, 104,474 parameters.

One of four networks at equal multiply-adds (within 2%) under the recipe of compare/recipe.py, N = 4.
Its width, 1.1, is what the others spend on coefficients and kernels.

    python -m basisnet_jax.main --config=configs/compare/fashion_mnist_static.py --config.seed=0

Hardware: two CPU cores. Time and top-1: docs/results.md.
"""

import ml_collections

from configs.compare import recipe


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of recipe.py."""
    config = recipe.get_config()
    config.model.routing = "static"
    config.model.specialist.width = 1.1
    return config
