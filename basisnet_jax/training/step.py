"""The training step and the evaluation step: pure functions, written once for any mesh."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from clu.metrics import Average

from basisnet_jax.models.basisnet import BasisNet, Outputs, Variables, resize
from basisnet_jax.models.stages import make_stages, normalize
from basisnet_jax.training import fake_quantization, finite, mixing
from basisnet_jax.training.joined import Joined
from basisnet_jax.training.losses import Distillation, joint_loss, smoothed_targets
from basisnet_jax.training.metrics import Metrics, correct, measure
from basisnet_jax.training.optimizers import Optimizer
from basisnet_jax.training.schedule import Schedule, decay_at, warm_start
from basisnet_jax.training.state import TrainState

# image uint8[B, H, W, C], label int32[B], mask float32[B]; perhaps task int32[B]; with cached teacher logits,
# teacher_logits float16[B, K]
Batch = dict[str, jax.Array]
# (the teacher's variables, images in [-1, 1] at the student's resolution) -> logits_BxK
Teacher = Callable[[Any, jax.Array], jax.Array]


def averaged(old: Any, new: Any, decay: jax.Array) -> Any:
    """Returns decay * old + (1 - decay) * new, leaf by leaf."""
    return jax.tree.map(lambda a, b: decay * a + (1.0 - decay) * b, old, new)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The settings of a training step besides model and optimizer; settings/groups.py says what each one means."""

    preview_weight: float
    label_smoothing: float
    mix: str  # 'none' or one of mixing.MIXES
    mix_alpha: float
    distillation: Distillation | None  # None without a teacher
    accumulate_steps: int
    batch_norm_momentum: float
    ema_decay: float
    seed: int
    fake_quantization: bool
    debug: bool


def make_teacher(model: BasisNet, resolution: int) -> Teacher:
    """Makes a teacher of a network: it sees the student's images, cropped and mixed, resized to `resolution`."""

    def teacher(variables: Variables, images_BxHxWxC: jax.Array) -> jax.Array:
        outputs: Outputs = model.apply(variables, resize(images_BxHxWxC, resolution), train=False)  # type: ignore[assignment]
        return outputs.logits_BxK

    return teacher


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a training step.

    Attributes:
      model: the network that is trained.
      optimizer: from `optimizers.make_optimizer`; its update takes the learning rate.
      learning_rate: (schedule, step) -> the learning rate.
      settings: the settings of the step.
      teacher: None where there is no teacher, or its logits come with the batch.
      pallas_kernels: whether the small parameters are cut from their vector by a Pallas kernel, see `vectors.cut`.
      gather: makes parameters that are split between devices whole on each device, for the model to use.
    """

    model: BasisNet
    optimizer: Optimizer
    learning_rate: Callable[[Schedule, jax.Array], jax.Array]
    settings: TrainSettings
    teacher: Teacher | None = None
    pallas_kernels: bool = False
    gather: Callable[[Any], Any] = lambda params: params


class Gradients(NamedTuple):
    """Gradients of a batch or a chunk, and what comes with them: batch norm's statistics, metrics, `debug`'s checks."""

    params: Joined
    batch_stats: Joined
    metrics: Metrics
    checks: finite.Checks


def make_train_step(parts: Parts) -> Callable[[TrainState, Batch, Schedule, Any], tuple[TrainState, dict[str, Any]]]:
    """Returns train_step(state, batch, schedule, teacher_variables) -> (state after one update, float32 metrics).

    Where the loss or the gradient is not finite, the update is skipped: only `step` advances, and the metric 'skipped'
    is 1 instead of 0. A gradient whose norm overflows counts as not finite. With `settings.debug` the metrics have
    'finite' too: checks of every layer's output and gradient, see `finite.py`.

    `teacher_variables` are None where no teacher runs. Distillation then takes the batch's teacher_logits.
    """
    settings = parts.settings
    compute = accumulated_gradients if settings.accumulate_steps > 1 else gradients_of

    def train_step(
        state: TrainState, batch: Batch, schedule: Schedule, teacher_variables: Any
    ) -> tuple[TrainState, dict[str, Any]]:
        key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
        gradients = compute(parts, state, batch, schedule, teacher_variables, key)
        rate = parts.learning_rate(schedule, state.step)
        updated = updated_state(parts, state, gradients, rate)
        described = {
            **{name: metric.compute() for name, metric in gradients.metrics.items()},
            "learning_rate": rate,
            "gradient_norm": optax.tree.norm(gradients.params),
        }
        sound = jnp.isfinite(described["loss"]) & jnp.isfinite(described["gradient_norm"])
        new_state = jax.tree.map(lambda new, old: jnp.where(sound, new, old), updated, state)
        described["skipped"] = jnp.where(sound, 0.0, 1.0)
        if settings.debug:
            described["finite"] = gradients.checks
        return dataclasses.replace(new_state, step=state.step + 1), described

    return train_step


def inputs_and_targets(
    parts: Parts, batch: Batch, teacher_variables: Any, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns a batch's images in [-1, 1], perhaps mixed, and {'label': ..., perhaps 'teacher': ...}, both [B, K]."""
    settings, distillation = parts.settings, parts.settings.distillation
    images_BxHxWxC = normalize(batch["image"])
    classes = parts.model.specialist.num_classes
    targets = {"label": smoothed_targets(batch["label"], classes, settings.label_smoothing)}
    if distillation and not parts.teacher:
        targets["teacher"] = distillation.targets(batch["teacher_logits"])
    if settings.mix != "none":
        images_BxHxWxC, targets = mixing.MIXES[settings.mix](images_BxHxWxC, targets, key, settings.mix_alpha)
    if distillation and parts.teacher:
        targets["teacher"] = distillation.targets(parts.teacher(teacher_variables, images_BxHxWxC))
    return images_BxHxWxC, targets


def gradients_of(
    parts: Parts, state: TrainState, batch: Batch, schedule: Schedule, teacher_variables: Any, key: jax.Array
) -> Gradients:
    """Returns the gradients of a whole batch."""
    settings = parts.settings
    mix_key, dropout_key = jax.random.split(key)
    images_BxHxWxC, targets = inputs_and_targets(parts, batch, teacher_variables, mix_key)

    def loss_of(params: Joined) -> tuple[jax.Array, Any]:
        checks: finite.Checks = {}
        if settings.debug:
            finite.note(checks, "the targets", targets)
        with contextlib.ExitStack() as around_layers:
            if settings.debug:
                around_layers.enter_context(finite.watched_layers(checks))
            if settings.fake_quantization:
                around_layers.enter_context(fake_quantization.rounded_layers())
            outputs, updated = parts.model.apply(
                {"params": parts.gather(params.tree(parts.pallas_kernels)), "batch_stats": state.batch_stats.tree()},
                images_BxHxWxC,
                train=True,
                warm_start=warm_start(state.step, schedule.warm_start_steps),
                task_B=batch.get("task"),
                rngs={"dropout": dropout_key},
                mutable=["batch_stats"],
            )
        loss_B = joint_loss(
            outputs, targets["label"], settings.preview_weight, settings.distillation, targets.get("teacher")
        )
        batch_stats = state.batch_stats.like_this(updated["batch_stats"])
        return jnp.mean(loss_B), (outputs, batch_stats, loss_B, checks)

    gradients, (outputs, batch_stats, loss_B, checks) = jax.grad(loss_of, has_aux=True)(state.params)
    if settings.debug:
        finite.note(checks, "the loss", loss_B)
        finite.note_gradients(checks, gradients.tree())
    metrics = measure(outputs, batch["label"], batch["mask"])
    metrics["loss"] = Average.from_model_output(loss_B, batch["mask"])
    if settings.distillation:
        hits_B = correct(targets["teacher"], batch["label"])
        metrics["teacher_top1"] = Average.from_model_output(hits_B, batch["mask"])
    return Gradients(gradients, batch_stats, metrics, checks)


def accumulated_gradients(
    parts: Parts, state: TrainState, batch: Batch, schedule: Schedule, teacher_variables: Any, key: jax.Array
) -> Gradients:
    """Returns the mean gradients of a batch processed in chunks, in sequence; batch norm sees one chunk at a time."""
    count = parts.settings.accumulate_steps
    # A chunk has every count-th image, so each device takes its part of the chunk from its own part of the batch.
    chunks = {name: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0) for name, x in batch.items()}

    def add(total: Any, chunk_and_key: Any) -> tuple[Any, Any]:
        chunk, chunk_key = chunk_and_key
        gradients, batch_stats, *rest = gradients_of(parts, state, chunk, schedule, teacher_variables, chunk_key)
        return jax.tree.map(jnp.add, total, (gradients, batch_stats)), rest

    start = jax.tree.map(jnp.zeros_like, (state.params, state.batch_stats))
    total, (metrics, checks) = jax.lax.scan(add, start, (chunks, jax.random.split(key, count)))
    gradients, batch_stats = jax.tree.map(lambda leaf: leaf / count, total)
    metrics = {name: metric.reduce() for name, metric in metrics.items()}
    return Gradients(gradients, batch_stats, metrics, jax.tree.map(jnp.all, checks))


def updated_state(parts: Parts, state: TrainState, gradients: Gradients, rate: jax.Array) -> TrainState:
    """Returns the state with parameters, running statistics and moving averages updated; `step` does not change."""
    settings = parts.settings
    updates, opt_state = parts.optimizer.update(gradients.params, state.opt_state, state.params, learning_rate=rate)
    params = optax.apply_updates(state.params, updates)
    momentum = decay_at(state.step, settings.batch_norm_momentum)
    batch_stats = averaged(state.batch_stats, gradients.batch_stats, momentum)
    ema_decay = decay_at(state.step, settings.ema_decay)
    return TrainState(
        step=state.step,
        params=params,
        batch_stats=batch_stats,
        ema_params=averaged(state.ema_params, params, ema_decay),
        ema_batch_stats=averaged(state.ema_batch_stats, batch_stats, ema_decay),
        opt_state=opt_state,
    )


def make_eval_step(model: BasisNet) -> Callable[[Variables, jax.Array | float, Batch], Metrics]:
    """Returns eval_step(variables, warm_start, batch) -> metrics over the images whose mask is 1; see `make_stages`."""
    first, second = make_stages(model)

    def eval_step(variables: Variables, warm_start: jax.Array | float, batch: Batch) -> Metrics:
        answers = first(variables, warm_start, batch["image"]) if first else ()
        logits_BxK = second(variables, warm_start, batch["image"], *answers[1:], task_B=batch.get("task"))
        return measure(Outputs(logits_BxK, *answers), batch["label"], batch["mask"])

    return eval_step
