"""BasisNet on rendered characters: about a thousand classes of nineteen scripts, 32x32 pixels; docs/examples/glyphs.md.

    python -m basisnet_jax.main --config=configs/glyphs.py --config.data.dir=DATA

Hardware: one CPU core. Time and top-1: docs/results.md. The split to choose settings on:
`--config.data.eval_split=sweep`.
"""

import ml_collections

from basisnet_jax.config import default


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of the default."""
    config = default()
    config.batch_size = 128
    config.epochs = 16.0
    config.log_every_steps = 100
    config.eval_every_epochs = 2.0
    config.warm_start_epochs = 4.0
    config.data.name = "glyphs"
    config.data.eval_split = "validation"
    config.data.max_shift = 2
    config.data.max_rotation = 10.0
    config.model.num_bases = 8
    config.model.specialist.width = 0.5
    config.model.specialist.resolution = 32
    config.model.preview.width = 0.35
    config.model.preview.resolution = 10
    config.optimizer.learning_rate = 16e-3
    config.schedule.warmup_epochs = 1.0
    return config
