"""Every setting with its default and meaning, and the rules that settings must meet.

A file in `configs/` starts from `default()` and changes what its run needs. Nothing below `experiment/` sees a
config: it is read there, and passed on as plain arguments.
"""

import difflib
import math
from collections.abc import Callable, Collection
from typing import Any, NoReturn

import ml_collections

from basisnet_jax.errors import UserError
from basisnet_jax.models.ablations import ABLATIONS
from basisnet_jax.models.architectures import ARCHITECTURES, PUBLISHERS


def default() -> ml_collections.ConfigDict:
    """The config that all others change; locked, so that a misspelled field is an error."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # of the initial parameters, the order of the data, augmentation and dropout
    config.batch_size = 64  # images a training step, over all hosts and devices
    config.epochs = 10.0  # passes over the training split
    config.accumulate_steps = 1  # pieces that a batch is worked off in, one after the other, where memory is short
    config.log_every_steps = 50  # steps between lines of training metrics
    # Steps in a row with a loss or gradient that is not finite before the run stops; 0 waits for each step to end.
    config.max_skipped_steps = 10
    config.debug = False  # check every layer in every step; the first number that is not finite stops the run
    config.profile_steps = 0  # steps in the profiler's trace, which starts after ten; 0: no trace
    config.eval_every_epochs = 1.0  # epochs between evaluations, each followed by a checkpoint; always one at the end
    # Both of the next two are smaller in early steps (`schedule.decay_at`), so that a short run's averages are its own.
    config.batch_norm_momentum = 0.99  # of batch norm's running mean and variance; 0: those of the newest batch
    config.ema_decay = 0.999  # of the moving average of parameters and running statistics; 0 is no average
    config.warm_start_epochs = 0.0  # epochs in which the coefficients go from uniform to the routing's own

    config.data = data = ml_collections.ConfigDict()
    data.name = "digits"  # 'digits' (embedded), 'folder', or a TFDS name with features 'image' and 'label'
    data.dir = ""  # where TFDS keeps prepared data, '' its own default; for 'folder', what holds split/class/*.jpg
    data.train_split = "train"  # TFDS split to train on; slices such as 'train[:90%]' too
    data.eval_split = "test"  # TFDS split to evaluate on
    # For a 'folder' of class/*.jpg without splits: the share of each class's images in 'test'; the rest is in 'train'.
    data.eval_share = 0.0
    data.task = ""  # routing 'task': the integer feature that says which task an example is of, as 'coarse_label'
    data.exif_orientation = True  # turn photographs upright as their EXIF data says; False: pixels as they are stored
    data.crop = "none"  # 'inception': train on a random part of each image; 'none': on all of it
    data.min_area = 0.08  # inception: the smallest part of an image's area
    data.max_aspect = 4 / 3  # inception: a crop's width / height is between the inverse of this and this
    data.eval_crop = "none"  # 'central': evaluate the central square; 'none': all of the image, squeezed to a square
    data.eval_padding = 32  # central: the square takes r / (r + eval_padding) of the shorter side, r the resolution
    data.flip = False  # mirror half of the training images
    data.max_shift = 0  # pixels that a training image is moved by at most, each way (at the model's resolution)
    data.max_rotation = 0.0  # degrees that a training image is turned by at most, each way
    data.policy = "none"  # 'autoaugment' (ImageNet's 25 sub-policies) or 'randaugment', on training images
    data.policy_layers = 2  # randaugment: operations an image
    data.policy_magnitude = 9.0  # randaugment: their strength, 0 to 10
    data.erasing = 0.0  # share of training images in which a random rectangle is erased
    data.max_bad_share = 0.001  # of the training examples that may be bad (and are replaced) before the run stops
    data.threads = 4  # threads that read and decode in each process
    data.workers = 0  # processes that read and decode; 0: threads of this process

    config.model = model = ml_collections.ConfigDict()
    # 'preview' (BasisNet); or the specialist alone, its kernels plain ('static') or with coefficients from 'condconv',
    # 'dynamic' (convolution), 'uniform' or 'task': see models/routing.py.
    model.routing = "preview"
    model.num_bases = 4  # N, basis kernels a synthesized layer
    model.granularity = "layer"  # one coefficient vector a 'layer', 'block' or 'model'
    # What is synthesized: 'blocks' for all convolutions of the blocks, or kinds of them ('expand', 'depthwise',
    # 'project'; ResNet's 'conv1', 'conv2', 'conv3', 'shortcut'); 'head_conv', 'head_dense', 'classifier' besides.
    model.synthesize = ("blocks",)
    model.synthesize_from_block = 0  # index of the first block whose convolutions are synthesized
    model.temperature = 4.0  # of the softmax over the bases; high keeps the coefficients near uniform
    # What the warm start of a preview's coefficients is: 'uniform', the weight of the uniform vector falls from 1 to 0;
    # or 'temperature', which falls from start_temperature to temperature, as it always does for 'dynamic'.
    model.warm_start = "uniform"
    model.start_temperature = 30.0
    model.num_tasks = 1  # task: how many tasks have coefficients of their own
    model.start_noise = 0.02  # bases that start from one kernel: deviation of their noise over that of the kernel
    model.dtype = "float32"  # what layers compute in: 'float32' or 'bfloat16'; parameters are float32
    model.tpu_kernels = True  # on a TPU, by models/pallas_tpu.py where a layer fits; False: XLA's forms everywhere
    model.specialist = _backbone("mobilenet_v3_micro", width=1.0, resolution=16)
    model.preview = _backbone("mobilenet_v3_micro", width=0.5, resolution=8)

    config.loss = loss = ml_collections.ConfigDict()
    loss.preview_weight = 1.0  # lambda in CE(specialist) + lambda * CE(preview)
    loss.label_smoothing = 0.0  # share of the target that is spread over all classes
    loss.mix = "none"  # 'mixup' or 'cutmix': each image is mixed with its neighbour, and its target with that one's
    loss.mix_alpha = 0.2  # the shares of a mix are from Beta(alpha, alpha)

    config.distill = distill = ml_collections.ConfigDict()
    distill.teacher = ""  # published weights by name (efficientnet_lite0, ...), or the workdir of a run; '' is none
    distill.weight = 0.5  # w in (1 - w) CE(label) + w T^2 KL(teacher || student), of both stages
    distill.temperature = 1.0  # T, of both softmaxes
    distill.labels = "soft"  # 'soft': the teacher's probabilities; 'hard': its class, whatever T
    distill.cache = ""  # folder of its logits, made once with --mode=teacher; '' runs it in every training step

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.name = "adamw"  # 'adamw', 'lamb', 'rmsprop' or 'sgd'
    optimizer.learning_rate = 1e-3  # at its peak, for a batch as `scale_with_batch` says
    optimizer.scale_with_batch = "none"  # 'linear': times batch_size / reference_batch; 'sqrt': its root; 'none'
    optimizer.reference_batch = 256  # the batch size that learning_rate is for, where it is scaled
    optimizer.weight_decay = 1e-2  # adamw, lamb: decoupled; rmsprop, sgd: L2; never on biases and batch norm
    optimizer.momentum = 0.9  # of rmsprop and sgd; adamw's and lamb's first decay rate
    optimizer.decay = 0.999  # of the squared gradient: rmsprop's decay, adamw's and lamb's second decay rate
    optimizer.epsilon = 1e-8  # rmsprop: under the root
    optimizer.trained = (
        ""  # only the parameters below this path are, such as 'routing' or 'specialist/head_conv'; '': all
    )
    optimizer.clip_norm = 0.0  # largest global norm of the gradient; 0 does not clip

    config.schedule = schedule = ml_collections.ConfigDict()
    schedule.name = "cosine"  # 'cosine' to zero, or 'exponential' in stairs
    schedule.warmup_epochs = 1.0  # epochs of linear warm-up
    schedule.decay_rate = 0.97  # exponential: factor of each stair
    schedule.decay_epochs = 2.4  # exponential: epochs a stair

    config.eval = evaluation = ml_collections.ConfigDict()
    evaluation.batch_size = 256  # images an evaluation step, over all hosts; rounded up to divide over the devices
    evaluation.exit_rate = 0.39  # --mode=cost: share of images that the preview answers alone, for the average
    evaluation.ema = True  # evaluate the moving averages rather than the newest parameters
    evaluation.resolution = 0  # side in pixels of the images that the specialist is evaluated on; 0: as in training
    evaluation.checkpoint = "best"  # --mode=evaluate: 'best' by top-1, 'newest', or a step such as '1621'
    evaluation.coefficients = ("predicted",)  # and ablations: uniform, argmax, shuffle_images, shuffle_layers
    evaluation.madds_target = 0.0  # choose the threshold that costs at most this on average; 0: by max_accuracy_drop
    evaluation.max_accuracy_drop = 0.003  # choose the threshold that loses at most this share of the images
    evaluation.compare = ()  # workdirs of other runs evaluated on the same images, drawn beside this one

    config.export = export = ml_collections.ConfigDict()
    # And 'onnx', which is made from the first; 'float16.tflite', 'int8_weights.tflite' and 'int8.tflite' are smaller.
    export.formats = ("tflite", "stablehlo")
    export.batch = 1  # images that a .tflite and an .onnx take at once; a .stablehlo takes any number

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every_epochs = 1.0  # epochs between checkpoints besides those after evaluations
    checkpoint.keep = 2  # newest checkpoints kept; the best by top-1 is kept besides

    config.mesh = mesh = ml_collections.ConfigDict()
    mesh.fsdp = 1  # devices over which each parameter is sharded; 1 replicates them
    return config.lock()


def _backbone(name: str, *, width: float, resolution: int) -> ml_collections.ConfigDict:
    backbone = ml_collections.ConfigDict()
    backbone.backbone = name  # a table of models/architectures.py
    backbone.width = width  # multiplies the channels
    backbone.resolution = resolution  # side in pixels of the image that it sees
    backbone.dropout = 0.0  # rate before the classifier
    # The weights to start from: as distill.teacher, or a .safetensors, .pth or .weights.h5 file; several with commas.
    backbone.start_from = ""  # '' draws them
    # 'keras', 'torchvision', 'timm', 'efficientnet_pytorch': whose padding, epsilon and normalization it has, as their
    # weights want; '': the table's own
    backbone.conventions = ""
    return backbone


EXPORT_FORMATS = ("tflite", "stablehlo", "onnx", "float16.tflite", "int8_weights.tflite", "int8.tflite")

_CHOICES: dict[str, Collection[str]] = {
    "data.crop": ("none", "inception"),
    "data.eval_crop": ("none", "central"),
    "data.policy": ("none", "autoaugment", "randaugment"),
    "model.routing": ("preview", "static", "uniform", "condconv", "dynamic", "task"),
    "model.warm_start": ("uniform", "temperature"),
    "model.granularity": ("layer", "block", "model"),
    "model.dtype": ("float32", "bfloat16"),
    "model.specialist.backbone": ARCHITECTURES,
    "model.preview.backbone": ARCHITECTURES,
    "model.specialist.conventions": ("", *PUBLISHERS),
    "model.preview.conventions": ("", *PUBLISHERS),
    "distill.labels": ("soft", "hard"),
    "loss.mix": ("none", "mixup", "cutmix"),
    "optimizer.name": ("adamw", "lamb", "rmsprop", "sgd"),
    "optimizer.scale_with_batch": ("none", "linear", "sqrt"),
    "schedule.name": ("cosine", "exponential"),
}

# {the rule: (whether a value meets it, the fields that it is for)}
_RANGES: dict[str, tuple[Callable[[float], bool], tuple[str, ...]]] = {
    "must be at least 0": (
        lambda value: value >= 0,
        (
            *("seed", "max_skipped_steps", "profile_steps", "warm_start_epochs"),
            *("data.max_shift", "data.max_rotation", "data.workers"),
            *("data.eval_padding", "model.synthesize_from_block", "loss.preview_weight", "schedule.warmup_epochs"),
            *("optimizer.weight_decay", "optimizer.clip_norm", "model.start_noise"),
            *("eval.resolution", "eval.madds_target"),
        ),
    ),
    "must be at least 1": (
        lambda value: value >= 1,
        (
            *("batch_size", "accumulate_steps", "log_every_steps", "optimizer.reference_batch"),
            *("data.threads", "data.policy_layers", "data.max_aspect", "model.num_bases", "model.num_tasks"),
            *("model.specialist.resolution", "model.preview.resolution"),
            *("eval.batch_size", "export.batch", "checkpoint.keep", "mesh.fsdp"),
        ),
    ),
    "must be more than 0": (
        lambda value: value > 0,
        (
            *("epochs", "eval_every_epochs", "checkpoint.every_epochs", "loss.mix_alpha"),
            *("model.temperature", "model.start_temperature", "distill.temperature"),
            *("model.specialist.width", "model.preview.width", "optimizer.learning_rate", "optimizer.epsilon"),
            *("schedule.decay_rate", "schedule.decay_epochs"),
        ),
    ),
    "must be in 0 to 10": (lambda value: 0 <= value <= 10, ("data.policy_magnitude",)),
    "must be in 0 to 1": (
        lambda value: 0 <= value <= 1,
        (
            *("data.erasing", "distill.weight"),
            *("eval.exit_rate", "eval.max_accuracy_drop"),
        ),
    ),
    "must be more than 0 and at most 1": (lambda value: 0 < value <= 1, ("data.min_area",)),
    "must be in [0, 1)": (
        lambda value: 0 <= value < 1,
        (
            *(
                "batch_norm_momentum",
                "ema_decay",
                "data.max_bad_share",
                "data.eval_share",
                "loss.label_smoothing",
                "optimizer.momentum",
                "optimizer.decay",
            ),
            *("model.specialist.dropout", "model.preview.dropout"),
        ),
    ),
}


def eval_resolution(config: ml_collections.ConfigDict) -> int:
    """Side in pixels of the images that the specialist is evaluated on."""
    return config.eval.resolution or config.model.specialist.resolution


def flatten(config: ml_collections.ConfigDict | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'model.num_bases': 4, ...}."""
    fields = {}
    for key, value in config.items():
        nested = isinstance(value, ml_collections.ConfigDict | dict)
        fields.update(flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return fields


def with_defaults(saved: dict[str, Any]) -> ml_collections.ConfigDict:
    """The config of a `config.json`, perhaps of an older version: fields that it lacks have their defaults."""
    config = default()
    known = flatten(config)
    config.update_from_flattened_dict({name: value for name, value in flatten(saved).items() if name in known})
    return config


def nearest_field(name: str, config: ml_collections.ConfigDict) -> str:
    """The sentence that answers an unknown field."""
    fields = list(flatten(config))
    by_leaf = {field.split(".")[-1]: field for field in fields}
    close = difflib.get_close_matches(name, fields, n=1)
    leaf = difflib.get_close_matches(name.split(".")[-1], by_leaf, n=1)
    meant = close or [by_leaf[x] for x in leaf]
    hint = f"did you mean config.{meant[0]}?" if meant else "the fields are listed in basisnet_jax/config.py."
    return f"there is no field config.{name}; {hint}"


def fail(field: str, value: Any, rule: str) -> NoReturn:
    """Raises UserError: the field, its value, and the rule that it breaks."""
    raise UserError(f"config.{field} = {value!r}: {rule}.")


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises UserError, naming the field, its value and the rule, if a value is out of range."""
    fields = flatten(config)
    for field, value in flatten(default()).items():
        if fields.get(field) is None:
            fail(field, None, "is missing; start the config from basisnet_jax.config.default()")
        if isinstance(value, tuple) and not all(isinstance(item, str) for item in fields[field]):
            fail(field, tuple(fields[field]), "must be strings")
    for field in fields:
        if field not in flatten(default()):
            raise UserError(nearest_field(field, default()))
        if isinstance(fields[field], float) and not math.isfinite(fields[field]):
            fail(field, fields[field], "must be finite")

    for field, allowed in _CHOICES.items():
        if fields[field] not in allowed:
            fail(field, fields[field], f"must be one of {', '.join(allowed)}")
    for rule, (holds, names) in _RANGES.items():
        for field in names:
            if not holds(fields[field]):
                fail(field, fields[field], rule)

    if config.seed >= 2**31:
        fail("seed", config.seed, "must be less than 2**31")
    if config.model.routing != "static":
        _check_synthesized(config.model)
    if config.data.eval_share and config.data.name != "folder":
        fail("data.eval_share", config.data.eval_share, "splits a 'folder'; slice a TFDS split, as in 'train[:90%]'")
    if config.model.routing == "task" and not config.data.task:
        fail("data.task", config.data.task, "the routing 'task' needs an integer feature of the data set")
    if config.model.routing == "task" and config.loss.mix != "none":
        fail("loss.mix", config.loss.mix, "mixes images of several tasks; the routing 'task' needs 'none'")
    if config.loss.mix != "none" and config.batch_size % (2 * config.accumulate_steps):
        fail("batch_size", config.batch_size, "loss.mix pairs images; it must be a multiple of 2 * accumulate_steps")
    if config.distill.cache and not config.distill.teacher:
        fail("distill.cache", config.distill.cache, "needs config.distill.teacher, whose logits it has")
    if any(name not in ABLATIONS for name in config.eval.coefficients):
        fail("eval.coefficients", tuple(config.eval.coefficients), f"must be some of {', '.join(ABLATIONS)}")
    formats = {*config.export.formats}
    if not formats or not formats <= {*EXPORT_FORMATS} or (formats >= {"onnx"} and "tflite" not in formats):
        rule = f"must be some of {', '.join(EXPORT_FORMATS)}, and 'onnx' is made from 'tflite'"
        fail("export.formats", tuple(config.export.formats), rule)
    if config.eval.checkpoint not in ("best", "newest") and not config.eval.checkpoint.isdecimal():
        fail("eval.checkpoint", config.eval.checkpoint, "must be 'best', 'newest' or a step such as '1621'")


def _check_synthesized(model: ml_collections.ConfigDict) -> None:
    """Raises UserError if what is to be synthesized is not in the specialist."""
    name, table = model.specialist.backbone, ARCHITECTURES[model.specialist.backbone]
    kinds = dict.fromkeys(layer.split("/")[-1] for layer in (*table.block_layers(), *table.head_layers()))
    if not model.synthesize or not {*model.synthesize} <= {"blocks", *kinds}:
        rule = f"must be some of {name}'s kinds of layers, {', '.join(['blocks', *kinds])}"
        fail("model.synthesize", tuple(model.synthesize), rule)
    if model.synthesize_from_block >= len(table.blocks):
        rule = f"{name} has the blocks 0 to {len(table.blocks) - 1}"
        fail("model.synthesize_from_block", model.synthesize_from_block, rule)
