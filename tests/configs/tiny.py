"""Two blocks on the digits: every kind of layer, and compiled in seconds."""

import ml_collections

from basisnet_jax.config import default
from basisnet_jax.models.architectures import ARCHITECTURES, Architecture, Block

TINY = Architecture(
    stem=8,
    stem_act="hard_swish",
    blocks=(
        Block(kernel=3, expand=16, out=8, se=True, act="relu"),
        Block(kernel=5, expand=24, out=16, stride=2, act="hard_swish"),
    ),
    head_conv=24,
    head_dense=16,
    head_act="hard_swish",
)
ARCHITECTURES["tiny"] = TINY


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of the default."""
    config = default()
    config.batch_size = 16
    config.epochs = 0.2  # of 1297 digits: 16 steps
    config.warm_start_epochs = 0.1
    config.eval_every_epochs = 0.1
    config.checkpoint.every_epochs = 0.05
    config.schedule.warmup_epochs = 0.05
    config.log_every_steps = 3
    config.data.eval_split = "test[:37]"  # divides by no batch
    config.data.max_shift = 1
    config.data.threads = 2
    config.eval.batch_size = 16
    config.loss.label_smoothing = 0.1
    for backbone, resolution in ((config.model.specialist, 8), (config.model.preview, 6)):
        backbone.backbone = "tiny"
        backbone.width = 1.0
        backbone.resolution = resolution
        backbone.dropout = 0.1
    return config
