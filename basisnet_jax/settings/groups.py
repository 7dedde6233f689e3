"""All settings of a run: each one's default, meaning, rule, and whether a resumed run may change it.

`setting` declares one that belongs to the run, `changeable` one that a resumed run may change, since it changes neither
the parameters nor the order of the data.
"""

import dataclasses

from basisnet_jax.data import preprocess
from basisnet_jax.host.mesh import XLA_PRESETS
from basisnet_jax.host.trackers import TRACKERS
from basisnet_jax.images.crop import EVAL_CROPS
from basisnet_jax.models.architectures import ARCHITECTURES, PUBLISHERS
from basisnet_jax.models.routing import GRANULARITIES, ROUTINGS, WARM_STARTS
from basisnet_jax.models.stages import ABLATIONS
from basisnet_jax.serving.formats import FORMATS
from basisnet_jax.settings.declare import (
    above,
    at_least,
    below,
    between,
    changeable,
    more_than,
    one_of,
    setting,
    some_of,
)
from basisnet_jax.training import losses, mixing, optimizers, schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The data set, and what is done to its images."""

    name: str = setting(
        "digits", "'digits' (included), 'folder', or a TFDS data set with features 'image' and 'label'."
    )
    dir: str = changeable(
        "", "Folder of TFDS's prepared data, '': TFDS's default; 'folder': the folder with split/class/*.jpg."
    )
    train_split: str = setting("train", "TFDS split to train on, or a slice such as 'train[:90%]'.")
    eval_split: str = setting("test", "TFDS split to evaluate on.")
    eval_share: float = setting(
        0.0,
        "'folder' with class/*.jpg, without splits: the share of each class's images that is in 'test'; the others are "
        "in 'train'.",
        below(0, 1),
    )
    task: str = setting("", "Routing 'task': the integer feature with each example's task, such as 'coarse_label'.")
    exif_orientation: bool = setting(
        True, "Turn photographs upright as their EXIF data says; False: pixels as they are stored."
    )
    crop: str = setting(
        "none",
        "'inception': train on a random crop of each image; 'none': on the whole image.",
        one_of(preprocess.CROPS),
    )
    min_area: float = setting(0.08, "inception: smallest share of an image's area in a crop.", above(0, 1))
    max_aspect: float = setting(
        4 / 3, "inception: a crop's width / height is between 1 / max_aspect and max_aspect.", at_least(1)
    )
    eval_crop: str = changeable(
        "none",
        "'central': evaluate the central square; 'none': the whole image, squeezed to a square.",
        one_of(EVAL_CROPS),
    )
    eval_padding: int = changeable(
        32,
        "central: the square's side is r / (r + eval_padding) of the shorter side; r is the resolution.",
        at_least(0),
    )
    flip: bool = setting(False, "Mirror half of the training images.")
    max_shift: int = setting(
        0, "Largest random shift of a training image in each direction, in pixels of the model's input.", at_least(0)
    )
    max_rotation: float = setting(0.0, "Largest random rotation of a training image, in degrees.", at_least(0))
    policy: str = setting(
        "none",
        "'autoaugment' (ImageNet's 25 sub-policies) or 'randaugment', on training images.",
        one_of(("none", *preprocess.POLICIES)),
    )
    policy_layers: int = setting(2, "randaugment: operations per image.", at_least(1))
    policy_magnitude: float = setting(9.0, "randaugment: the operations' strength.", between(0, 10))
    erasing: float = setting(0.0, "Share of training images in which a random rectangle is erased.", between(0, 1))
    max_bad_share: float = changeable(
        0.001, "Largest share of bad training examples, which are replaced; the run stops at more.", below(0, 1)
    )
    threads: int = changeable(4, "Threads that read and decode in each process.", at_least(1))
    workers: int = changeable(0, "Processes that read and decode; 0: threads of the training process.", at_least(0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """One of the two networks."""

    backbone: str = setting(
        "mobilenet_v3_micro", "Name of an architecture in models/architectures.py.", one_of(ARCHITECTURES)
    )
    width: float = setting(1.0, "Factor for the number of channels.", more_than(0))
    resolution: int = setting(16, "Side in pixels of the image that the network sees.", at_least(1))
    dropout: float = setting(0.0, "Dropout rate before the classifier.", below(0, 1))
    start_from: str = setting(
        "",
        "Weights to start from: as in distill.teacher, or a .safetensors, .pth or .weights.h5 file; commas separate "
        "several. '': random weights.",
    )
    conventions: str = setting(
        "",
        "Publisher whose padding, epsilon and normalization the network has, to fit the publisher's weights; '': the "
        "architecture's own.",
        one_of(("", *PUBLISHERS)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The specialist, its bases, and where their coefficients come from."""

    routing: str = setting(
        "preview",
        "'preview' (BasisNet); 'static': the specialist alone with plain kernels; or the specialist alone with "
        "coefficients from 'condconv', 'dynamic' (convolution), 'uniform' or 'task' (see models/routing.py).",
        one_of(("preview", "static", *ROUTINGS)),
    )
    num_bases: int = setting(4, "N, the basis kernels per synthesized layer.", at_least(1))
    coefficients_from: str = setting(
        "classifier",
        "The preview's vector that its coefficients come from: 'classifier': the one that its classifier sees; 'pool': "
        "the average of its last feature map, before the dense layer of its head.",
        one_of(("classifier", "pool")),
    )
    granularity: str = setting("layer", "What gets its own coefficient vector.", one_of(GRANULARITIES))
    channel_groups: int = setting(
        1, "Groups of a layer's output channels, each with a coefficient vector of its own.", at_least(1)
    )
    synthesize: tuple[str, ...] = setting(
        ("blocks",),
        "Layers to synthesize: 'blocks' for all convolutions of the blocks, or kinds of them ('expand', 'depthwise', "
        "'project'; ResNet's 'conv1', 'conv2', 'conv3', 'shortcut'); also 'head_conv', 'head_dense', 'classifier'.",
    )
    synthesize_from_block: int = setting(0, "Index of the first block whose convolutions are synthesized.", at_least(0))
    temperature: float = setting(
        4.0, "Temperature of the softmax over the bases; a high one keeps the coefficients near uniform.", more_than(0)
    )
    warm_start: str = setting(
        "uniform",
        "How a preview's coefficients are warmed up: 'uniform': the weight of the uniform vector falls from 1 to 0; "
        "'temperature': the temperature falls from start_temperature to temperature (routing 'dynamic': always).",
        one_of(WARM_STARTS),
    )
    start_temperature: float = setting(30.0, "The temperature at the beginning of a warm start.", more_than(0))
    num_tasks: int = setting(1, "Routing 'task': number of tasks, each with its own coefficients.", at_least(1))
    start_noise: float = setting(
        0.02,
        "Bases that start from the same kernel: deviation of their noise over the kernel's deviation.",
        at_least(0),
    )
    dtype: str = setting(
        "float32", "Type that layers compute in; parameters are float32.", one_of(("float32", "bfloat16"))
    )
    pallas_kernels: bool = changeable(
        True,
        "On TPUs and NVIDIA GPUs, use the kernels of ops/pallas_*.py where a layer fits; False: XLA's forms on all.",
    )
    specialist: BackboneSettings = dataclasses.field(default=BackboneSettings())
    preview: BackboneSettings = dataclasses.field(default=BackboneSettings(width=0.5, resolution=8))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The loss."""

    preview_weight: float = setting(1.0, "lambda in CE(specialist) + lambda * CE(preview).", at_least(0))
    label_smoothing: float = setting(0.0, "Share of the target that is spread over all classes.", below(0, 1))
    mix: str = setting(
        "none",
        "How each image and its target are mixed with the neighbouring image and its target.",
        one_of(("none", *mixing.MIXES)),
    )
    mix_alpha: float = setting(0.2, "alpha: the shares of a mix are drawn from Beta(alpha, alpha).", more_than(0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """A teacher, which both stages learn from."""

    teacher: str = setting(
        "",
        "Published weights by name (efficientnet_lite0, ...), the workdir of a run, or an export with the format "
        "'safetensors'; '': no teacher.",
    )
    weight: float = setting(
        0.5, "w in (1 - w) CE(label) + w T^2 KL(teacher || student), for both stages.", between(0, 1)
    )
    temperature: float = setting(1.0, "T, the temperature of both softmaxes.", more_than(0))
    labels: str = setting(
        "soft",
        "'soft': the teacher's probabilities; 'hard': the teacher's class, with T = 1.",
        one_of(losses.TEACHER_LABELS),
    )
    cache: str = setting(
        "",
        "Folder of the teacher's logits, made once with --mode=teacher; '' runs the teacher in every training step. "
        "The path may change on resume.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimizer."""

    name: str = setting("adamw", "The optimizer (see training/optimizers.py).", one_of(optimizers.OPTIMIZERS))
    learning_rate: float = setting(1e-3, "Peak learning rate, before `scale_with_batch`.", more_than(0))
    scale_with_batch: str = setting(
        "none",
        "'linear': the rate times batch_size / reference_batch; 'sqrt': times its root; 'none': the rate itself.",
        one_of(optimizers.BATCH_SCALINGS),
    )
    reference_batch: int = setting(
        256, "The batch size that learning_rate is meant for, if the rate is scaled.", at_least(1)
    )
    weight_decay: float = setting(
        1e-2, "Decoupled for adamw and lamb, L2 for rmsprop and sgd; never on biases and batch norm.", at_least(0)
    )
    momentum: float = setting(0.9, "Momentum of rmsprop and sgd; adamw's and lamb's first decay rate.", below(0, 1))
    decay: float = setting(
        0.999, "rmsprop's decay of the squared gradient; adamw's and lamb's second decay rate.", below(0, 1)
    )
    epsilon: float = setting(1e-8, "Added to the root of the squared gradient; rmsprop: under the root.", more_than(0))
    trained: str = setting(
        "", "Train only the parameters below this path, such as 'routing' or 'specialist/head_conv'; '': all."
    )
    clip_norm: float = setting(0.0, "Largest global norm of the gradient; 0: no clipping.", at_least(0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The learning rate over the run."""

    name: str = setting("cosine", "'cosine' to zero, or 'exponential' in stairs.", one_of(schedule.LEARNING_RATES))
    warmup_epochs: float = setting(1.0, "Epochs of linear warm-up.", at_least(0))
    decay_rate: float = setting(0.97, "exponential: factor of each stair.", more_than(0))
    decay_epochs: float = setting(2.4, "exponential: epochs per stair.", more_than(0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Evaluation, in training and with --mode=evaluate."""

    batch_size: int = changeable(
        256, "Images per evaluation step, over all hosts; rounded up to a multiple of the devices.", at_least(1)
    )
    exit_rate: float = changeable(
        0.39, "--mode=cost: share of images that the preview answers alone, for the average cost.", between(0, 1)
    )
    ema: bool = changeable(True, "Evaluate the moving averages rather than the newest parameters.")
    resolution: int = changeable(
        0, "Side in pixels of the images that the specialist is evaluated on; 0: as in training.", at_least(0)
    )
    checkpoint: str = changeable("best", "'best' by top-1, 'newest', or a step such as '1621'.")
    coefficients: tuple[str, ...] = changeable(
        ("predicted",),
        "Coefficients that the specialist gets: 'predicted', and ablations (`ABLATIONS` in models/stages.py).",
        some_of(ABLATIONS),
    )
    madds_target: float = changeable(
        0.0,
        "Choose the threshold that costs at most this many multiply-adds on average; 0: choose by max_accuracy_drop.",
        at_least(0),
    )
    max_accuracy_drop: float = changeable(
        0.003, "Choose the threshold with the most exits whose top-1 drops by at most this.", between(0, 1)
    )
    compare: tuple[str, ...] = changeable(
        (), "Workdirs of other runs, evaluated on the same images, to plot beside this run."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Files for phones and servers."""

    formats: tuple[str, ...] = changeable(
        ("tflite", "stablehlo"),
        "The formats; 'onnx' is made from 'tflite'; 'float16.tflite', 'int8_weights.tflite' and 'int8.tflite' are "
        "smaller; 'safetensors' has the weights for `basisnet_jax.from_pretrained`; 'timm.safetensors' and "
        "'torchvision.safetensors' have a static network's for those libraries; 'web' is a folder with a page that "
        "runs the first kind of .tflite files in a browser.",
        some_of(FORMATS),
    )
    web_runtime: str = changeable(
        "",
        "For 'web': a folder with the .tgz files of LiteRT.js that `npm pack` writes, for machines without npm; '' "
        "has npm get them.",
    )
    license: str = changeable(
        "unknown", "License of the weights, for the model card: a name that the Hub knows, such as 'apache-2.0'."
    )
    batch: int = changeable(1, "Images per call of a .tflite or .onnx; a .stablehlo takes any number.", at_least(1))
    early_exit: bool = changeable(
        True,
        "A file for the preview, which can answer alone, and one for the specialist; False: one file that always runs "
        "both, without the preview's classifier, which nobody reads then.",
    )
    qat: bool = setting(
        False, "Quantization-aware training: train with activations rounded as 'int8.tflite' will round them."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Trackers of experiments, beside the event files."""

    trackers: tuple[str, ...] = changeable(
        (), "Trackers that get the metrics, the config, the results and the plots, too.", some_of(TRACKERS)
    )
    project: str = changeable("basisnet", "Name of MLflow's experiment, or of Weights & Biases's project.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Checkpoints."""

    every_epochs: float = changeable(1.0, "Epochs between checkpoints; each evaluation saves one, too.", more_than(0))
    keep: int = changeable(2, "Number of newest checkpoints to keep; the best by top-1 is kept, too.", at_least(1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """How parameters lie on the devices, and how the step is compiled for them."""

    fsdp: int = changeable(1, "Devices over which each parameter is sharded; 1 replicates them.", at_least(1))
    xla_preset: str = changeable(
        "default",
        "XLA's options for the training step; 'gpu': for NVIDIA GPUs (docs/guides/cluster.md).",
        one_of(XLA_PRESETS),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The run."""

    seed: int = setting(
        0, "Seed of the initial parameters, the order of the data, augmentation and dropout.", below(0, 2**31)
    )
    batch_size: int = setting(64, "Images per training step, over all hosts and devices.", at_least(1))
    epochs: float = setting(10.0, "Passes over the training split.", more_than(0))
    accumulate_steps: int = setting(
        1, "Chunks that a batch is processed in, one after the other, to save memory.", at_least(1)
    )
    log_every_steps: int = changeable(50, "Steps between lines of training metrics.", at_least(1))
    max_skipped_steps: int = changeable(
        10,
        "Most steps in a row skipped for a loss or gradient that is not finite; 0: stop at the first (slower).",
        at_least(0),
    )
    debug: bool = changeable(
        False, "Check every layer in every step; the first number that is not finite stops the run."
    )
    profile_steps: int = changeable(
        0, "Steps in the profiler's trace, which starts after ten steps; 0: no trace.", at_least(0)
    )
    eval_every_epochs: float = changeable(
        1.0, "Epochs between evaluations, each with a checkpoint; there is always one at the end.", more_than(0)
    )
    batch_norm_momentum: float = setting(
        0.99,
        "Momentum of batch norm's running mean and variance; 0: the newest batch's. Smaller in early steps "
        "(`schedule.decay_at`).",
        below(0, 1),
    )
    ema_decay: float = setting(
        0.999,
        "Decay of the moving average of parameters and running statistics; 0: no average. Smaller in early steps.",
        below(0, 1),
    )
    warm_start_epochs: float = setting(
        0.0, "Epochs in which the coefficients go from uniform to the routing's own.", at_least(0)
    )
    data: DataSettings = dataclasses.field(default=DataSettings())
    model: ModelSettings = dataclasses.field(default=ModelSettings())
    loss: LossSettings = dataclasses.field(default=LossSettings())
    distill: DistillSettings = dataclasses.field(default=DistillSettings())
    optimizer: OptimizerSettings = dataclasses.field(default=OptimizerSettings())
    schedule: ScheduleSettings = dataclasses.field(default=ScheduleSettings())
    eval: EvalSettings = dataclasses.field(default=EvalSettings())
    export: ExportSettings = dataclasses.field(default=ExportSettings())
    log: LogSettings = dataclasses.field(default=LogSettings())
    checkpoint: CheckpointSettings = dataclasses.field(default=CheckpointSettings())
    mesh: MeshSettings = dataclasses.field(default=MeshSettings())

    @property
    def eval_resolution(self) -> int:
        """Side in pixels of the images that the specialist is evaluated on."""
        return self.eval.resolution or self.model.specialist.resolution
