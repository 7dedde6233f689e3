"""CondConv on Fashion-MNIST: 1,433,784 multiply-adds, 211,994 parameters.

One of four networks at equal multiply-adds (within 2%) under the recipe of compare/recipe.py, N = 4.
As in its paper, the head's 1x1 convolution and the classifier are synthesized too.

    python -m basisnet_jax.main --config=configs/compare/fashion_mnist_condconv.py --config.seed=0

Hardware: two CPU cores. Time and top-1: docs/results.md.
"""

import ml_collections

from configs.compare import recipe


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of recipe.py."""
    config = recipe.get_config()
    config.model.routing = "condconv"
    config.model.synthesize = ("blocks", "head_conv", "classifier")
    config.model.specialist.width = 1.04
    return config
