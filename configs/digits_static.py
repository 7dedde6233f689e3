"""The specialist of digits.py alone, with plain kernels: what BasisNet is to be compared with.

    python -m basisnet_jax.main --config=configs/digits_static.py

Hardware: two CPU cores. Time and top-1: README.md.
"""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
    """As digits.py, without preview and bases."""
    config = digits.get_config()
    config.model.routing = "static"
    return config
