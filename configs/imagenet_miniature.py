"""The recipe of imagenet_mbv3.py on a small network, small images and a miniature of ImageNet: a proof that it learns.

    python benchmarks/miniature_imagenet.py DATA      # then prepare it as docs/guides/data.md says for ImageNet
    python -m basisnet_jax.main --config=configs/imagenet_miniature.py --config.data.dir=DATA

Evaluates on what it was trained on: 123 images of eight classes. Everything but sizes, epochs and the learning rate's
reference batch is the recipe: LAMB, AutoAugment, mixup, a teacher (here Lite0), moving averages, a warm start. The
teacher counts for less, since some labels are only near: it calls the rocket a missile, and the officer's suit a gown.
"""

import ml_collections

from configs import imagenet_mbv3


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of imagenet_mbv3.py."""
    config = imagenet_mbv3.get_config()
    config.batch_size = config.eval.batch_size = 16
    config.epochs = 120.0
    config.eval_every_epochs = config.checkpoint.every_epochs = 40.0
    config.log_every_steps = 50
    config.ema_decay = 0.98
    config.warm_start_epochs = 5.0
    config.data.update(eval_split="train", workers=0)
    config.distill.update(teacher="efficientnet_lite0", weight=0.2)
    config.optimizer.reference_batch = 16
    config.model.update(num_bases=4, dtype="float32")
    for stage, resolution in ((config.model.specialist, 64), (config.model.preview, 32)):
        stage.update(backbone="mobilenet_v3_small", width=0.5, resolution=resolution)
    return config
