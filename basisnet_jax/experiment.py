"""A config turned into what a run is made of: data, mesh, model, optimizer, jitted steps. The config is read here."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import optax

from basisnet_jax import config as config_lib
from basisnet_jax import mesh as mesh_lib
from basisnet_jax import optim, state, step
from basisnet_jax import plan as plan_lib
from basisnet_jax.data import datasets, pipeline, preprocess
from basisnet_jax.errors import UserError
from basisnet_jax.metrics import Metrics
from basisnet_jax.models import cost, routing
from basisnet_jax.models.backbones import ARCHITECTURES, Architecture, scaled
from basisnet_jax.models.basisnet import BasisNet
from basisnet_jax.models.blocks import Backbone

TrainStep = Callable[[state.TrainState, step.Batch], tuple[state.TrainState, dict[str, jax.Array]]]
EvalStep = Callable[[state.TrainState, step.Batch], Metrics]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a run needs, made once; no array is on a device yet."""

    config: ml_collections.ConfigDict
    plan: plan_lib.Plan
    data: datasets.Dataset
    mesh: jax.sharding.Mesh
    model: BasisNet
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the image that the specialist sees."""
        side = self.config.model.specialist.resolution
        return side, side, self.data.channels

    @functools.cached_property
    def abstract_state(self) -> state.TrainState:
        """Shapes, dtypes and shardings of the training state."""
        return state.abstract_state(self.mesh, self.model, self.optimizer, self.image_shape)

    def init_state(self) -> state.TrainState:
        """The state before the first step, each array created straight in its sharding."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        init = functools.partial(state.init_state, self.model, self.optimizer, self.image_shape, self.config.seed)
        # Run once: on CPU, optimizing it would take longer than all it does.
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        options = {"xla_backend_optimization_level": 0} if on_cpu else None
        return jax.jit(init, out_shardings=shardings, compiler_options=options)()

    def train_step(self) -> TrainStep:
        """The training step, jitted with the mesh's shardings; it takes over the state's memory."""
        settings = step.TrainSettings(
            preview_weight=self.config.loss.preview_weight,
            label_smoothing=self.config.loss.label_smoothing,
            mix=self.config.loss.mix,
            mix_alpha=self.config.loss.mix_alpha,
            warm_start_steps=self.plan.warm_start_steps,
            accumulate_steps=self.config.accumulate_steps,
            ema_decay=self.config.ema_decay,
            seed=self.config.seed,
        )
        function = step.make_train_step(self.model, self.optimizer, self.schedule, settings)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        return jax.jit(
            mesh_lib.traced_under(self.mesh, function),
            in_shardings=(shardings, mesh_lib.batch_sharding(self.mesh)),
            out_shardings=(shardings, mesh_lib.replicated(self.mesh)),
            donate_argnums=0,
        )

    def eval_step(self) -> EvalStep:
        """The evaluation step, jitted with the mesh's shardings."""
        function = step.make_eval_step(
            self.model, ema=self.config.eval.ema, warm_start_steps=self.plan.warm_start_steps
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        return jax.jit(
            mesh_lib.traced_under(self.mesh, function),
            in_shardings=(shardings, mesh_lib.batch_sharding(self.mesh)),
            out_shardings=mesh_lib.replicated(self.mesh),
        )

    def train_batches(self, start_step: int) -> Iterator[step.Batch]:
        """Global batches from a step on."""
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

    def eval_batches(self) -> Iterator[step.Batch]:
        """Global batches that hold every evaluation example once."""
        crop = preprocess.CentralCrop(self.config.data.eval_padding)
        batches = pipeline.eval_batches(
            self.data.eval,
            batch_size=self.plan.eval_batch_size,
            side=self.image_shape[0],
            channels=self.data.channels,
            num_classes=self.data.num_classes,
            crop=crop if self.config.data.eval_crop == "central" else None,
            process=jax.process_index(),
            processes=jax.process_count(),
            threads=self.config.data.threads,
        )
        return (mesh_lib.to_global(self.mesh, batch) for batch in batches)

    def cost(self) -> cost.Cost:
        """Multiply-adds and parameters."""
        return model_cost(self.model, self.image_shape[0], self.data.channels)


def model_cost(model: BasisNet, resolution: int, channels: int) -> cost.Cost:
    """Multiply-adds and parameters of a model on resolution x resolution images of that many channels."""
    specialist = model.specialist
    if model.preview is None:
        return cost.static_cost(specialist.architecture, resolution, specialist.num_classes, channels)
    return cost.basisnet_cost(
        model.preview.architecture,
        model.preview_resolution,
        specialist.architecture,
        resolution,
        specialist.num_classes,
        num_bases=model.num_bases,
        synthesized=model.synthesized,
        granularity=model.granularity,
        channels=channels,
    )


def make_model(config: ml_collections.ConfigDict, num_classes: int) -> BasisNet:
    """The model that `config.model` describes. Raises UserError if no layer of it would be synthesized."""
    dtype = jnp.dtype(config.dtype)

    def backbone(settings: ml_collections.ConfigDict) -> Backbone:
        return Backbone(_architecture(settings), num_classes, settings.dropout, dtype, config.tpu_kernels)

    specialist = backbone(config.specialist)
    if config.routing == "static":
        return BasisNet(specialist)
    layers = routing.layers_to_synthesize(
        specialist.architecture.bottleneck_layers(), config.synthesize, config.synthesize_from_block
    )
    if not layers:
        raise UserError(
            f"config.model.synthesize = {tuple(config.synthesize)} from block {config.synthesize_from_block} on "
            f"names no layer of {config.specialist.backbone}; name another kind or an earlier block."
        )
    return BasisNet(
        specialist,
        backbone(config.preview),
        preview_resolution=config.preview.resolution,
        num_bases=config.num_bases,
        synthesized=layers,
        granularity=config.granularity,
        temperature=config.temperature,
    )


def _architecture(settings: ml_collections.ConfigDict) -> Architecture:
    return scaled(ARCHITECTURES[settings.backbone], settings.width)


def make_experiment(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Experiment:
    """Reads the config. Raises UserError for whatever in it, in the data or in the devices does not fit.

    Args:
      config: see `config.py`.
      devices: to run on; None is all there are.
    """
    config_lib.validate(config)
    # Before a device is asked for: starting a pod takes minutes, and missing data is seen in seconds.
    data = datasets.open_dataset(config.data.name, config.data.dir, config.data.train_split, config.data.eval_split)
    devices = jax.devices() if devices is None else devices
    plan = plan_lib.derive(
        config,
        train_examples=len(data.train),
        eval_examples=len(data.eval),
        devices=len(devices),
        processes=jax.process_count(),
    )
    optimizer, schedule = config.optimizer, config.schedule
    learning_rate = optim.make_schedule(
        schedule.name,
        peak=plan.learning_rate,
        warmup_steps=plan.warmup_steps,
        total_steps=plan.total_steps,
        decay_rate=schedule.decay_rate,
        decay_steps=plan.decay_steps,
    )
    return Experiment(
        config=config,
        plan=plan,
        data=data,
        mesh=mesh_lib.make_mesh(devices, config.mesh.fsdp),
        model=make_model(config.model, data.num_classes),
        schedule=learning_rate,
        optimizer=optim.make_optimizer(
            optimizer.name,
            learning_rate,
            weight_decay=optimizer.weight_decay,
            momentum=optimizer.momentum,
            decay=optimizer.decay,
            epsilon=optimizer.epsilon,
            clip_norm=optimizer.clip_norm,
        ),
    )
