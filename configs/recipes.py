"""Published recipes, each as one function that sets the fields of a config; the sources stand with them."""

import ml_collections


def mobilenet_v3(config: ml_collections.ConfigDict) -> None:
    """The MobileNetV3 paper's (arXiv 1905.02244, section 6.1.1), on a 4x4 TPU pod slice."""
    _imagenet(config)
    config.batch_size = 4096
    config.epochs = 350.0  # ours: the paper names no number
    config.ema_decay = 0.9999
    config.loss.label_smoothing = 0.1  # ours
    config.model.specialist.dropout = 0.2
    config.optimizer.update(name="rmsprop", learning_rate=0.1, momentum=0.9, decay=0.9, epsilon=1e-3, weight_decay=1e-5)
    config.schedule.update(name="exponential", warmup_epochs=5.0, decay_rate=0.99, decay_epochs=3.0)


def mnasnet(config: ml_collections.ConfigDict) -> None:
    """The MnasNet reference's (tensorflow/tpu): what most MobileNets on TPUs were trained with."""
    _imagenet(config)
    config.batch_size = 1024
    config.epochs = 350.0
    config.ema_decay = 0.9999
    config.loss.label_smoothing = 0.1
    config.model.specialist.dropout = 0.2
    config.optimizer.update(name="rmsprop", learning_rate=0.016, scale_with_batch="linear", reference_batch=256)
    config.optimizer.update(momentum=0.9, decay=0.9, epsilon=1e-3, weight_decay=1e-5)
    config.schedule.update(name="exponential", warmup_epochs=5.0, decay_rate=0.97, decay_epochs=2.4)


def modern(config: ml_collections.ConfigDict) -> None:
    """Ours: LAMB, cosine, AutoAugment, mixup, weight averaging, a teacher. Untried at scale; a start for a sweep.

    The teacher is the best whose weights are published as a package (77.6% top-1); a run of one's own that is better
    should be better: --config.distill.teacher=runs/... Without one: --config.distill.teacher=''.
    """
    _imagenet(config)
    config.batch_size = 4096
    config.epochs = 350.0
    config.ema_decay = 0.9999
    config.data.policy = "autoaugment"
    config.distill.update(teacher="efficientnet_lite2", weight=0.5, temperature=1.0)
    config.loss.update(label_smoothing=0.1, mix="mixup", mix_alpha=0.2)
    config.model.specialist.dropout = 0.2
    config.optimizer.update(name="lamb", learning_rate=5e-3, scale_with_batch="sqrt", reference_batch=2048)
    config.optimizer.update(momentum=0.9, decay=0.999, epsilon=1e-6, weight_decay=2e-2, clip_norm=1.0)
    config.schedule.update(name="cosine", warmup_epochs=5.0)


def _imagenet(config: ml_collections.ConfigDict) -> None:
    """Inception's preprocessing (MnasNet's), read by sixteen processes a host."""
    config.data.exif_orientation = False  # as TensorFlow and torchvision read ImageNet for the published figures
    config.data.update(name="imagenet2012", train_split="train", eval_split="validation", flip=True, workers=16)
    config.data.update(crop="inception", eval_crop="central")
    config.eval.batch_size = 1024
    config.eval_every_epochs = 5.0
    config.log_every_steps = 100
    config.model.dtype = "bfloat16"
