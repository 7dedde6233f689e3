"""The numbers of a run that follow from its config, data and devices: derived once, here."""

import dataclasses
import math

from basisnet_jax.settings.declare import fail
from basisnet_jax.settings.groups import Settings
from basisnet_jax.training import optimizers
from basisnet_jax.training.schedule import decay_at


@dataclasses.dataclass(frozen=True)
class Plan:
    """Steps and batches of a run, derived once."""

    train_examples: int
    eval_examples: int
    batch_size: int  # training images per step, over all hosts
    eval_batch_size: int  # over all hosts, rounded up to divide over the devices
    learning_rate: float  # the schedule's peak, for this batch size
    total_steps: int
    warmup_steps: int
    warm_start_steps: int
    decay_steps: int  # steps per stair of the exponential schedule
    notes: tuple[str, ...]  # a sentence for each setting that the run is too short for

    def epoch(self, step: int) -> int:
        """Returns the epoch that a step ends in; both are counted from 1."""
        return -(-step * self.batch_size // self.train_examples)

    def due(self, step: int, every_epochs: float) -> bool:
        """Returns whether a multiple of `every_epochs`, or the end, is reached just after `step` updates."""

        def periods(steps: int) -> int:
            return int(steps * self.batch_size / (every_epochs * self.train_examples))

        return step == self.total_steps or periods(step) > periods(max(step - 1, 0))


def derive(
    config: Settings,
    *,
    train_examples: int,
    eval_examples: int,
    devices: int,
    processes: int,
    slices: int = 1,
    training: bool = True,
) -> Plan:
    """Derives a run's numbers, such as its steps from its epochs.

    A warm-up or warm start that would not end before the run does gets a tenth of the run, and a note says so.

    Args:
      config: a validated config.
      train_examples: number of examples in the training split.
      eval_examples: number of examples in the evaluation split.
      devices: number of devices on all hosts, over which a batch is sharded.
      processes: number of hosts; each reads its own share of a batch.
      slices: number of equal slices of the devices; a parameter is never split over several slices.
      training: whether there will be training; for evaluation alone, the training batch need not divide.

    Raises:
      UserError: `mesh.fsdp` does not divide the devices; in training, a batch does not divide.
    """
    if devices // slices % config.mesh.fsdp:
        where = "" if slices == 1 else " of a slice"
        fail("mesh.fsdp", config.mesh.fsdp, f"must divide the number of devices{where}, {devices // slices}")
    unit = math.lcm(devices, processes)
    if training:
        _check_training_batch(config, devices, unit)
    scaling = optimizers.BATCH_SCALINGS[config.optimizer.scale_with_batch]
    factor = scaling(config.batch_size / config.optimizer.reference_batch)

    def steps(epochs: float) -> int:
        return max(1, round(epochs * train_examples / config.batch_size))

    total_steps = steps(config.epochs)
    fields = {"schedule.warmup_epochs": config.schedule.warmup_epochs, "warm_start_epochs": config.warm_start_epochs}
    unfit = {field: epochs for field, epochs in fields.items() if epochs and steps(epochs) >= total_steps}
    warmup_steps, warm_start_steps = (
        total_steps // 10 if field in unfit else steps(epochs) if epochs else 0 for field, epochs in fields.items()
    )
    notes = [*_unfit(unfit, config.epochs, total_steps), *_short_averages(config.ema_decay, total_steps)]
    return Plan(
        train_examples=train_examples,
        eval_examples=eval_examples,
        batch_size=config.batch_size,
        eval_batch_size=_round_up(config.eval.batch_size, unit),
        learning_rate=config.optimizer.learning_rate * factor,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        warm_start_steps=warm_start_steps,
        decay_steps=steps(config.schedule.decay_epochs),
        notes=tuple(notes),
    )


def _round_up(size: int, unit: int) -> int:
    """Returns the smallest multiple of `unit` that is at least `size`."""
    return -(-size // unit) * unit


def _check_training_batch(config: Settings, devices: int, unit: int) -> None:
    """Raises UserError if a batch is not a multiple of `unit`, or a device's share does not divide into its chunks."""
    size = config.batch_size
    if size % unit:
        below, above = size // unit * unit, _round_up(size, unit)
        use = f"{below} or {above}" if below else str(above)
        fail("batch_size", size, f"does not divide over {devices} devices; use {use}")
    if size % (devices * config.accumulate_steps):
        rule = f"must divide the {size // devices} images of a batch on each device"
        fail("accumulate_steps", config.accumulate_steps, rule)


def _unfit(fields: dict[str, float], epochs: float, total_steps: int) -> list[str]:
    """Returns a note on the fields whose epochs do not fit into a run of `epochs` epochs."""
    if not fields:
        return []
    named = " and ".join(f"config.{field} = {value:g}" for field, value in fields.items())
    verb, what = ("do", "each is cut to") if len(fields) > 1 else ("does", "it is cut to")
    return [
        f"{named} {verb} not fit into config.epochs = {epochs:g}; {what} a tenth of the run, {total_steps // 10} of "
        f"{total_steps} steps."
    ]


def _short_averages(ema_decay: float, total_steps: int) -> list[str]:
    """Returns a note if the moving averages cover less than a tenth of the steps that `ema_decay` means."""
    meant, reached = 1.0 / (1.0 - ema_decay), 1.0 / (1.0 - float(decay_at(total_steps, ema_decay)))
    if reached >= meant / 10:
        return []
    return [
        f"config.ema_decay = {ema_decay:g} averages over {meant:,.0f} steps, but a run of {total_steps} steps averages "
        f"over its last {reached:.0f}."
    ]
