"""BasisNet on Fashion-MNIST: 1,439,312 multiply-adds, 215,008 parameters.

One of four networks at equal multiply-adds (within 2%) under the recipe of compare/recipe.py, N = 4.
The preview is 0.75 wide and sees 10x10 pixels.

    python -m basisnet_jax.main --config=configs/compare/fashion_mnist_preview.py --config.seed=0

Hardware: two CPU cores. Time and top-1: docs/results.md.
"""

import ml_collections

from configs.compare import recipe


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of recipe.py."""
    config = recipe.get_config()
    config.model.specialist.width = 0.84
    config.model.preview.update(width=0.75, resolution=10)
    return config
