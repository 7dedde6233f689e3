"""A static network on rendered characters, of about as many multiply-adds as the BasisNet of glyphs.py.

    python -m basisnet_jax.main --config=configs/glyphs_static.py --config.data.dir=DATA

Hardware: one CPU core. Time and top-1: docs/results.md.
"""

import ml_collections

from configs import glyphs


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of glyphs.py: no preview, no bases, and a network that is wider by their multiply-adds."""
    config = glyphs.get_config()
    config.model.routing = "static"
    config.model.specialist.width = 0.6
    return config
