"""The parts of a run, made from its config: data, mesh, model, optimizer, jitted steps. The config is read here."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from basisnet_jax.config import Config, validate
from basisnet_jax.data import datasets, pipeline, preprocess, teacher_logits
from basisnet_jax.experiment import plan as plan_lib
from basisnet_jax.experiment import trained
from basisnet_jax.experiment.model import eval_crop, make_model, model_cost
from basisnet_jax.experiment.teacher import load_teacher, teacher_identity
from basisnet_jax.host import devices as devices_lib
from basisnet_jax.host import files
from basisnet_jax.host import mesh as mesh_lib
from basisnet_jax.models import cost
from basisnet_jax.models.basisnet import BasisNet, Variables
from basisnet_jax.models.stages import Stages, make_stages
from basisnet_jax.settings.groups import DataSettings, Settings
from basisnet_jax.training import optimizers, state, step
from basisnet_jax.training import schedule as schedule_lib
from basisnet_jax.training.losses import Distillation
from basisnet_jax.training.metrics import Metrics

TrainStep = Callable[
    [state.TrainState, step.Batch, schedule_lib.Schedule, Any], tuple[state.TrainState, dict[str, Any]]
]
EvalStep = Callable[[Variables, Any, step.Batch], Metrics]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a run needs, made once; no array is on a device yet."""

    config: Settings
    plan: plan_lib.Plan
    data: datasets.Dataset
    mesh: jax.sharding.Mesh
    model: BasisNet
    teacher: trained.Trained | None  # None without a teacher, and where the teacher's logits are cached
    teacher_fingerprint: str | None  # SHA-256 of the teacher's weights, also where its logits are cached
    schedule: schedule_lib.Schedule  # an argument of the training step
    optimizer: optimizers.Optimizer

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the image that the specialist sees."""
        side = self.config.model.specialist.resolution
        return side, side, self.data.channels

    @property
    def eval_side(self) -> int:
        """Height and width of the images that are evaluated."""
        return self.config.eval_resolution

    @functools.cached_property
    def abstract_state(self) -> state.TrainState:
        """Shapes, dtypes and shardings of the training state."""
        return state.abstract_state(self.mesh, self.model, self.optimizer, self.image_shape)

    def abstract_batch(self, size: int, *, training: bool = True) -> step.Batch:
        """Returns shapes, dtypes and shardings of a global batch of `size` images, of training or of evaluation."""
        sharding = mesh_lib.batch_sharding(self.mesh)

        def array(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
            return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)

        side = self.image_shape[0] if training else self.eval_side
        cached = training and self.config.distill.cache
        logits = {"teacher_logits": array((self.data.num_classes,), jnp.float16)} if cached else {}
        task = {"task": array((), jnp.int32)} if self.config.data.task else {}
        return {
            "image": array((side, side, self.data.channels), jnp.uint8),
            "label": array((), jnp.int32),
            "mask": array((), jnp.float32),
            **logits,
            **task,
        }

    @property
    def abstract_variables(self) -> Variables:
        """Shapes, dtypes and shardings of the model's variables."""
        return self.abstract_state.variables(ema=False)

    def init_state(self) -> state.TrainState:
        """Returns the state before the first step, each array created straight in its sharding."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        config, seed = self.config.model, self.config.seed
        stages = {"specialist": config.specialist, **({"preview": config.preview} if self.model.preview else {})}
        sources = {name: trained.starting_weights(name, stage) for name, stage in stages.items() if stage.start_from}

        def init(sources: dict[str, list[Any]]) -> state.TrainState:
            start = functools.partial(trained.start_from, sources=sources, noise=config.start_noise, seed=seed)
            return state.init_state(self.model, self.optimizer, self.image_shape, seed, start)

        # The program runs once: on CPU, optimizing it would take longer than running it.
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        options = {"xla_backend_optimization_level": 0} if on_cpu else None
        return jax.jit(init, out_shardings=shardings, compiler_options=options)(sources)

    def teacher_variables(self) -> Any:
        """Returns the teacher's variables, replicated on the mesh; None where no teacher runs in the training step."""
        return jax.device_put(self.teacher.variables, mesh_lib.replicated(self.mesh)) if self.teacher else None

    @property
    def abstract_teacher(self) -> Any:
        """Shapes, dtypes and shardings of `teacher_variables`."""
        sharding = mesh_lib.replicated(self.mesh)
        variables = self.teacher.variables if self.teacher else None
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), variables)

    def warm_start_left(self, at_step: int) -> float:
        """Returns how much of the warm start is left at a step, for the evaluation."""
        return float(schedule_lib.warm_start(at_step, self.plan.warm_start_steps))

    def _gather(self, params: Any) -> Any:
        """Makes parameters whole on every device; XLA would otherwise gather the batch where the batch is smaller."""
        return jax.lax.with_sharding_constraint(params, mesh_lib.replicated(self.mesh))

    def _jit_inference(self, function: Callable[..., Any], arrays: int, out: jax.sharding.Sharding) -> Any:
        """Jits function(variables, warm start, *arguments) with `arrays` arguments that are sharded like a batch."""

        def gathered(variables: Variables, *arguments: Any) -> Any:
            return function({**variables, "params": self._gather(variables["params"])}, *arguments)

        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_variables)
        batch = (mesh_lib.batch_sharding(self.mesh),) * arrays
        return jax.jit(
            mesh_lib.with_mesh_in_context(self.mesh, functools.wraps(function)(gathered)),
            in_shardings=(shardings, mesh_lib.replicated(self.mesh), *batch),
            out_shardings=out,
        )

    def train_step(self, *, debug: bool = False) -> TrainStep:
        """Returns the training step, jitted with the mesh's shardings; the step reuses the state's memory."""
        distill = self.config.distill
        loss = self.config.loss
        distillation = Distillation(distill.weight, distill.temperature, hard=distill.labels == "hard")
        settings = step.TrainSettings(
            preview_weight=loss.preview_weight,
            label_smoothing=loss.label_smoothing,
            mix=loss.mix,
            mix_alpha=loss.mix_alpha,
            distillation=distillation if distill.teacher else None,
            accumulate_steps=self.config.accumulate_steps,
            batch_norm_momentum=self.config.batch_norm_momentum,
            ema_decay=self.config.ema_decay,
            seed=self.config.seed,
            fake_quantization=self.config.export.qat,
            debug=debug,
        )
        learning_rate = schedule_lib.LEARNING_RATES[self.config.schedule.name]
        teacher = step.make_teacher(self.teacher.model, self.teacher.resolution) if self.teacher else None
        parts = step.Parts(
            self.model,
            self.optimizer,
            learning_rate,
            settings,
            teacher,
            pallas_kernels=self.config.model.pallas_kernels,
            gather=self._gather,
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        whole = mesh_lib.replicated(self.mesh)
        return jax.jit(
            mesh_lib.with_mesh_in_context(self.mesh, step.make_train_step(parts)),
            in_shardings=(shardings, mesh_lib.batch_sharding(self.mesh), whole, whole),
            out_shardings=(shardings, whole),
            donate_argnums=0,
            compiler_options=mesh_lib.XLA_PRESETS[self.config.mesh.xla_preset],
        )

    def eval_step(self) -> EvalStep:
        """Returns the evaluation step, jitted with the mesh's shardings."""
        return self._jit_inference(step.make_eval_step(self.model), 1, mesh_lib.replicated(self.mesh))

    @functools.cached_property  # so that evaluating again, with other coefficients, does not compile again
    def stages(self) -> Stages:
        """The model's stages, jitted with the mesh's shardings."""
        first, second = make_stages(self.model)
        batch = mesh_lib.batch_sharding(self.mesh)
        return Stages(self._jit_inference(first, 1, batch) if first else None, self._jit_inference(second, 3, batch))

    def train_batches(self, start_step: int) -> Iterator[step.Batch]:
        """Yields the global batches of the steps after the first `start_step`."""
        data = self.config.data
        crop = preprocess.RandomCrop(data.min_area, data.max_aspect)
        batches = pipeline.train_batches(
            self.data.train,
            batch_size=self.plan.batch_size,
            side=self.image_shape[0],
            channels=self.data.channels,
            num_classes=self.data.num_classes,
            augmentation=preprocess.Augmentation(
                flip=data.flip,
                max_shift=data.max_shift,
                max_rotation=data.max_rotation,
                crop=crop if data.crop == "inception" else None,
                exif_orientation=data.exif_orientation,
                policy=data.policy,
                layers=data.policy_layers,
                magnitude=data.policy_magnitude,
                erasing=data.erasing,
            ),
            max_bad_share=data.max_bad_share,
            seed=self.config.seed,
            start_step=start_step,
            process=jax.process_index(),
            processes=jax.process_count(),
            threads=data.threads,
            workers=data.workers,
        )
        return (mesh_lib.to_global(self.mesh, batch) for batch in batches)

    def eval_batches(self, order: np.ndarray | None = None) -> Iterator[step.Batch]:
        """Yields global batches that hold every evaluation example once, in the split's order or that of `order`."""
        batches = pipeline.eval_batches(
            self.data.eval if order is None else pipeline.Reordered(self.data.eval, order),
            batch_size=self.plan.eval_batch_size,
            side=self.eval_side,
            channels=self.data.channels,
            num_classes=self.data.num_classes,
            crop=eval_crop(self.config.data),
            process=jax.process_index(),
            processes=jax.process_count(),
            threads=self.config.data.threads,
        )
        return (mesh_lib.to_global(self.mesh, batch) for batch in batches)

    def vector_names(self) -> list[str]:
        """Names each coefficient vector after the first layer that reads it."""
        groups = self.model.channel_groups
        parts = [f" {group}/{groups}" for group in range(1, groups + 1)] if groups > 1 else [""]
        first = {
            number: layer + part
            for layer, numbers in reversed(self.model.vectors().items())
            for number, part in zip(numbers, parts, strict=True)
        }
        return [first[number] for number in sorted(first)]

    def cost(self) -> cost.Cost:
        """Counts the multiply-adds of an evaluated image, and the parameters."""
        return model_cost(self.model, self.eval_side, self.data.channels)


def open_data(
    settings: DataSettings, open_dataset: Callable[..., datasets.Dataset] = datasets.open_dataset
) -> datasets.Dataset:
    """Opens the data set that `config.data` names. Raises UserError if it is missing or has one class."""
    data = open_dataset(settings.name, settings.dir, settings.train_split, settings.eval_split, settings.eval_share)
    datasets.check_classes(data.name, data.classes)
    return data


def largest_joined(config: Config, devices: Sequence[jax.Device]) -> int:
    """Returns how many numbers a parameter may have to be joined with others, see `joined.join`.

    On NVIDIA GPUs all are joined, since a launch for each would cost more than a copy of all. Elsewhere, and where
    parameters are split between devices, the large ones stay apart.
    """
    copied_at_once = devices[0].platform in ("gpu", "cuda") and config.model.pallas_kernels
    return sys.maxsize if copied_at_once and config.mesh.fsdp == 1 else mesh_lib.SMALLEST_SHARDED - 1


def make_experiment(
    config: Config,
    devices: Sequence[jax.Device] | None = None,
    open_dataset: Callable[..., datasets.Dataset] = datasets.open_dataset,
    *,
    training: bool = True,
) -> Experiment:
    """Makes a run's parts from its config. Raises UserError if config, data or devices do not fit.

    Args:
      config: see `config.py`.
      devices: devices to run on; None is all there are. They may be remote devices that are only compiled for.
      open_dataset: `datasets.describe_dataset` to read no data.
      training: whether there will be training: then the teacher must exist, and the batch divide over the devices.
    """
    config = validate(config)
    # Data comes before the first use of a device: starting a pod takes minutes, seeing that data is missing seconds.
    data = open_data(config.data, open_dataset)
    data = datasets.with_tasks(data, config.data.task, config.model.num_tasks) if config.data.task else data
    teacher = load_teacher(config, data) if training else None
    if teacher and config.distill.cache and not isinstance(data.train, datasets.SizeOnlySplit):
        cache = files.absolute(config.distill.cache)
        data = dataclasses.replace(
            data, train=teacher_logits.with_logits(data.train, cache, teacher_identity(teacher, data))
        )
    devices = devices_lib.available() if devices is None else devices
    plan = plan_lib.derive(
        config,
        train_examples=len(data.train),
        eval_examples=len(data.eval),
        devices=len(devices),
        processes=len({device.process_index for device in devices}),
        slices=mesh_lib.num_slices(devices),
        training=training,
    )
    numbers = schedule_lib.make_schedule(
        peak=plan.learning_rate,
        warmup_steps=plan.warmup_steps,
        total_steps=plan.total_steps,
        decay_rate=config.schedule.decay_rate,
        decay_steps=plan.decay_steps,
        warm_start_steps=plan.warm_start_steps,
    )
    settings = config.optimizer
    optimizer = optimizers.make_optimizer(
        settings.name,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        decay=settings.decay,
        epsilon=settings.epsilon,
        clip_norm=settings.clip_norm,
        trained=settings.trained,
        largest_joined=largest_joined(config, devices),
    )
    return Experiment(
        config=config,
        plan=plan,
        data=data,
        mesh=mesh_lib.make_mesh(devices, config.mesh.fsdp),
        model=make_model(config.model, data.num_classes),
        teacher=None if config.distill.cache else teacher,
        teacher_fingerprint=teacher.fingerprint() if teacher else None,
        schedule=numbers,
        optimizer=optimizer,
    )
