"""--mode=compile: compiles the step of a run for TPUs or GPUs that are not here, and estimates its cost there.

No TPU or GPU is needed, and the data only where its size is otherwise unknown. Memory is the compiler's own figure.
Times are estimates: docs/guides/compile.md says how reliable they are.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from basisnet_jax.aot import batch_checks, hlo, report
from basisnet_jax.aot.chips import GIB, GPUS, TPUS, Chip, Gpu, usable_bytes
from basisnet_jax.aot.costs import Cost, costs
from basisnet_jax.aot.layer_groups import GROUPS, group_of
from basisnet_jax.aot.topology import devices_of
from basisnet_jax.config import Config, validate
from basisnet_jax.data import datasets
from basisnet_jax.errors import UserError
from basisnet_jax.experiment.run import Experiment, make_experiment
from basisnet_jax.host import files
from basisnet_jax.settings.groups import Settings
from basisnet_jax.workdir.lock import made

BATCH_UNIT = 8  # --fit tries multiples of so many images a device: the compiler pads other numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """The step to compile, and the devices to compile for."""

    topology: str  # a TPU slice, such as 'v5e:16x16', or a host with GPUs, such as 'h100:8'
    slices: int = 1  # number of such slices or hosts
    what: str = "train"  # or 'eval'
    per_chip_batch: int | None = None  # images; None: the config's batch over all chips
    fit: bool = False  # whether to find the largest batch that fits, too
    price: float | None = None  # price of a chip-hour, in any currency


def compile_for(config: Config, workdir: str, target: Target) -> str:
    """Compiles the step, writes `compile.json` into the workdir, and returns the table to print.

    Raises:
      UserError: config, topology or batch do not fit, the compiler is missing, the step moves the batch between
        devices or puts it into a convolution's groups, or the workdir cannot be written.
    """
    config = validate(config)
    devices, chip = devices_of(target.topology, target.slices)
    folder = files.absolute(workdir)
    with made(folder):  # before compiling, which takes minutes
        cost_report = _cost_report(config, devices, chip, target)
        files.write_json(folder / "compile.json", cost_report)
    return report.table(cost_report)


def _cost_report(config: Settings, devices: Sequence[jax.Device], chip: Chip, target: Target) -> dict[str, Any]:
    """Returns the contents of `compile.json`. Raises UserError as `compile_for` does."""
    chips = len(devices) // chip.devices

    def experiment_of(per_chip_batch: int | None) -> Experiment:
        sized = with_batch(config, target.what, per_chip_batch, chips)
        return make_experiment(sized, devices, datasets.describe_dataset, training=target.what == "train")

    experiment = experiment_of(target.per_chip_batch)
    described = describe(experiment, chip, target)
    if target.fit:

        def needed_bytes(images: int) -> int:
            if images * chip.devices == described["images"]["per_chip"]:
                return described["memory_bytes_per_device"]["peak"]
            return compile_step(experiment_of(images * chip.devices), target.what)[1]["peak"]

        unit = BATCH_UNIT * (config.accumulate_steps if target.what == "train" else 1)
        start = max(described["images"]["per_chip"] // chip.devices // unit * unit, unit)
        largest = largest_that_fits(needed_bytes, usable_bytes(chip), start, unit)
        described["largest_per_chip_batch"] = largest * chip.devices
    return described


def with_batch(config: Settings, what: str, per_chip_batch: int | None, chips: int) -> Settings:
    """Returns the config with `per_chip_batch` images a chip in the step `what`, 'train' or 'eval'.

    Raises:
      UserError: `per_chip_batch` is below 1.
    """
    if per_chip_batch is None:
        return config
    if per_chip_batch < 1:
        raise UserError(f"--per_chip_batch={per_chip_batch}: must be at least 1.")
    size = per_chip_batch * chips
    if what == "train":
        return dataclasses.replace(config, batch_size=size)
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=size))


def compile_step(experiment: Experiment, what: str) -> tuple[jax.stages.Compiled | None, dict[str, int]]:
    """Compiles the step; returns the program (None if it was refused), and a device's bytes of memory by use.

    A TPU's compiler refuses a program that does not fit; then only the 'peak' is known. A GPU's compiler does not
    refuse it.

    Raises:
      UserError: the batch is in a convolution's groups, or moves between devices.
    """
    train = what == "train"
    step: Any = experiment.train_step() if train else experiment.eval_step()
    size = experiment.plan.batch_size if train else experiment.plan.eval_batch_size
    state = experiment.abstract_state

    def trace(size: int) -> jax.stages.Traced:
        batch = experiment.abstract_batch(size, training=train)
        if train:
            return step.trace(state, batch, experiment.schedule, experiment.abstract_teacher)
        return step.trace(experiment.abstract_variables, np.float32(0.0), batch)

    traced = trace(size)
    batch_checks.refuse_groups(traced.jaxpr.jaxpr, trace(2 * size).jaxpr.jaxpr)
    logging.info("compiling the %s step for %d images on %d devices", what, size, experiment.mesh.size)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed = re.search(r"\(([\d.]+)([KMGT])\) exceeds|Used ([\d.]+)([KMGT]) of", str(error))
        if not needed:
            raise
        number, prefix = (group for group in needed.groups() if group)
        return None, {"peak": int(float(number) * 1024 ** (1 + "KMGT".index(prefix)))}
    memory = compiled.memory_analysis()
    return compiled, {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "in_place": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
    }


def describe(experiment: Experiment, chip: Chip, target: Target) -> dict[str, Any]:
    """Compiles the step, and returns its cost. Raises UserError as `compile_for` does."""
    plan, devices = experiment.plan, list(experiment.mesh.devices.flat)
    chips = len(devices) // chip.devices
    train = target.what == "train"
    images = plan.batch_size if train else plan.eval_batch_size
    compiled, memory = compile_step(experiment, target.what)
    available = usable_bytes(chip)
    fits = compiled is not None and memory["peak"] <= available
    family = GPUS if isinstance(chip, Gpu) else TPUS
    basics = {
        "what": target.what,
        "topology": target.topology,
        "slices": target.slices,
        "chips": chips,
        "hosts": len({device.process_index for device in devices}),
        "devices": len(devices),
        "fsdp": experiment.config.mesh.fsdp,
        "images": {"step": images, "per_chip": images // chips},
        "chip": dataclasses.asdict(chip),
        "memory_bytes_per_device": {**memory, "available": available},
        "usable_memory": report.usable_memory(chip),
        "fits": fits,
        "fits_on": [name for name, other in family.items() if usable_bytes(other) >= memory["peak"]],
        "bias": report.bias(chip),
    }
    if compiled is None or not fits:
        return basics
    places = [getattr(device, "process_index" if chip.place == "host" else "slice_index", 0) for device in devices]
    work = estimate(compiled, chip, places)
    steps = (plan.train_examples if train else plan.eval_examples) / images
    hours = steps * work["seconds_per_step"] / 3600
    return {
        **basics,
        **work,
        "images_per_second": images / work["seconds_per_step"],
        "epochs": experiment.config.epochs if train else 1,
        "epoch_hours": hours,
        "epoch_chip_hours": hours * chips,
        "epoch_price": None if target.price is None else hours * chips * target.price,
    }


def estimate(compiled: jax.stages.Compiled, chip: Chip, places: Sequence[int]) -> dict[str, Any]:
    """Estimates a step's work and time, by group of layers. Raises UserError if the batch moves between devices."""
    program = hlo.parse(compiled.as_text() or "")
    batch_checks.refuse_gathers(program)
    groups = costs(program, group_of, chip, places)
    total = Cost()
    for cost in groups.values():
        total.add(cost)
    outside = total.outside_bytes
    return {
        "groups": {name: dataclasses.asdict(groups[name]) for name in GROUPS if name in groups},
        "total": dataclasses.asdict(total),
        "between": {
            "what": f"between {chip.place}s",
            "bytes": outside,
            "seconds": outside / chip.per_device(chip.outside) if chip.outside else None,
        },
        "seconds_per_step": total.seconds,
    }


# The largest batch


def largest_that_fits(needed_bytes: Callable[[int], int], available: int, start: int, unit: int) -> int:
    """Returns the largest multiple of `unit` whose `needed_bytes` are at most `available`; 0 if none fits.

    Each call compiles for minutes, and memory grows almost linearly with the batch. So the batch is doubled until one
    does not fit; then linear interpolation narrows the two bounds, by at least one unit each time.

    Args:
      needed_bytes: returns the bytes that a batch needs.
      available: available bytes.
      start: first batch to try, a multiple of `unit`.
      unit: number of images.
    """
    fits, too_large = (0, 0), (0, 0)  # (batch, bytes)
    batch = start
    while not too_large[0] or too_large[0] - fits[0] > unit:
        needed = needed_bytes(batch)
        logging.info("%d images a device need %.2f GiB", batch, needed / GIB)
        if needed <= available:
            fits = (batch, needed)
        else:
            too_large = (batch, needed)
        if not too_large[0]:
            batch = 2 * fits[0]
            continue
        share = (available - fits[1]) / (too_large[1] - fits[1])
        guess = fits[0] + int((too_large[0] - fits[0]) * share) // unit * unit
        batch = min(max(guess, fits[0] + unit), too_large[0] - unit)
    return fits[0]
