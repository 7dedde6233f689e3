"""The specialist of configs/digits.py alone, with plain kernels: what BasisNet's is to be compared with."""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
    """As digits.py, without preview and bases."""
    config = digits.get_config()
    config.model.routing = "static"
    return config
