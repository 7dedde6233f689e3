"""--mode=compile: compiles the step of a run for a TPU topology that is not here, and estimates its cost there.

No TPU is needed, and the data only where its size is otherwise unknown. Memory is the compiler's own figure. Times are
estimates: docs/performance.md says how reliable they are.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from basisnet_jax.aot import batch_checks, hlo
from basisnet_jax.aot.topology import Chip, devices_of
from basisnet_jax.config import Config, validate
from basisnet_jax.data import datasets
from basisnet_jax.errors import UserError
from basisnet_jax.experiment.run import Experiment, make_experiment
from basisnet_jax.host import files
from basisnet_jax.settings.groups import Settings
from basisnet_jax.workdir.lock import made

GIB = 2**30
BATCH_UNIT = 8  # --fit tries multiples of so many images a device: the compiler pads other numbers
BIAS = (
    "Seconds are the sum of max(cycles / clock, HBM bytes / bandwidth) over the operations, with the compiler's "
    "estimate of cycles; nothing was run. The estimate is too high for sums of shifted taps (6 to 7 times), static "
    "convolutions (2 to 5.5 times) and memory-bound bfloat16 operations (2.5 to 3 times); a Pallas kernel has no "
    "estimate and counts by its bytes alone. Compare like with like. Memory and bytes are the compiler's own figures "
    "and can be relied on."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """The step to compile, and the TPU to compile for."""

    topology: str  # topology of a slice, such as 'v5e:16x16'
    slices: int = 1
    what: str = "train"  # or 'eval'
    per_chip_batch: int | None = None  # images; None: the config's batch over all chips
    fit: bool = False  # whether to find the largest batch that fits, too
    price: float | None = None  # price of a chip-hour, in any currency


def compile_for(config: Config, workdir: str, target: Target) -> str:
    """Compiles the step, writes `compile.json` into the workdir, and returns the table to print.

    Raises:
      UserError: config, topology or batch do not fit, libtpu is missing, the step moves the batch between devices or
        puts it into a convolution's groups, or the workdir cannot be written.
    """
    config = validate(config)
    devices, chip = devices_of(target.topology, target.slices)
    folder = files.absolute(workdir)
    with made(folder):  # before compiling, which takes minutes
        report = _cost_report(config, devices, chip, target)
        files.write_json(folder / "compile.json", report)
    return table(report)


def _cost_report(config: Settings, devices: Sequence[jax.Device], chip: Chip, target: Target) -> dict[str, Any]:
    """Returns the contents of `compile.json`. Raises UserError as `compile_for` does."""
    chips = len(devices) // chip.devices

    def experiment_of(per_chip_batch: int | None) -> Experiment:
        sized = with_batch(config, target.what, per_chip_batch, chips)
        return make_experiment(sized, devices, datasets.describe_dataset, training=target.what == "train")

    experiment = experiment_of(target.per_chip_batch)
    report = describe(experiment, chip, target)
    if target.fit:

        def needed_bytes(images: int) -> int:
            if images * chip.devices == report["images"]["per_chip"]:
                return report["hbm_bytes_per_device"]["peak"]
            return compile_step(experiment_of(images * chip.devices), target.what)[1]["peak"]

        unit = BATCH_UNIT * (config.accumulate_steps if target.what == "train" else 1)
        start = max(report["images"]["per_chip"] // chip.devices // unit * unit, unit)
        largest = largest_that_fits(needed_bytes, int(chip.hbm_gib * GIB), start, unit)
        report["largest_per_chip_batch"] = largest * chip.devices
    return report


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
    """Compiles the step; returns the program (None if it does not fit), and a device's bytes of HBM by use.

    If the program does not fit, only the 'peak' is known.

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
    report = {
        "what": target.what,
        "topology": target.topology,
        "slices": target.slices,
        "chips": chips,
        "hosts": len({device.process_index for device in devices}),
        "devices": len(devices),
        "fsdp": experiment.config.mesh.fsdp,
        "images": {"step": images, "per_chip": images // chips},
        "chip": dataclasses.asdict(chip),
        "hbm_bytes_per_device": {**memory, "available": int(chip.hbm_gib * GIB)},
        "fits": compiled is not None,
        "bias": BIAS,
    }
    if compiled is None:
        return report
    work = estimate(compiled, chip, len(devices))
    steps = (plan.train_examples if train else plan.eval_examples) / images
    hours = steps * work["seconds_per_step"] / 3600
    return {
        **report,
        **work,
        "images_per_second": images / work["seconds_per_step"],
        "epochs": experiment.config.epochs if train else 1,
        "epoch_hours": hours,
        "epoch_chip_hours": hours * chips,
        "epoch_price": None if target.price is None else hours * chips * target.price,
    }


def estimate(compiled: jax.stages.Compiled, chip: Chip, devices: int) -> dict[str, Any]:
    """Estimates a step's work and time, by group of layers. Raises UserError if the batch moves between devices."""
    program = hlo.parse(compiled.as_text() or "")
    batch_checks.refuse_gathers(program)
    groups = hlo.costs(
        program,
        group_of,
        clock=chip.clock,
        bandwidth=chip.per_device(chip.bandwidth),
        ring=chip.per_device(chip.network),
        devices=devices,
    )
    total = hlo.Cost()
    for cost in groups.values():
        total.add(cost)
    outside = hlo.between_slices_bytes(program)
    outside_seconds = outside / chip.per_device(chip.outside) if chip.outside else 0.0
    return {
        "flops_per_device": (compiled.cost_analysis() or {}).get("flops"),
        "groups": {name: dataclasses.asdict(groups[name]) for name in _GROUPS if name in groups},
        "total": dataclasses.asdict(total),
        "between_slices": {"bytes": outside, "seconds": outside_seconds if chip.outside or not outside else None},
        "seconds_per_step": total.seconds + outside_seconds,
    }


# The group of layers of an operation


def group_of(label: str) -> str:
    """Returns the group of layers of an operation with JAX's label; a fusion has its last operation's label.

    'jit(train_step)/transpose(jvp(BasisNet))/specialist/block03/depthwise_norm/...' -> 'norm, activation'.
    """
    label = label.split(";")[0]
    if not label:  # the compiler's copies: between HBM and its other memory, or to another layout
        return "copies"
    path = re.sub(r"'\]\['|\['|'\]", "/", label).split("/")
    if re.match(r"state\.(opt_state|ema|step|batch_stats)", label):
        return "optimizer, averages"
    if "preview" in path or "coefficients" in path:
        return "preview, coefficients"
    if "specialist" in path:
        inside = [*path[path.index("specialist") + 1 :], "", ""]
        kind = inside[1] if inside[0].startswith("block") else inside[0]
        if kind.endswith("_norm"):
            return "norm, activation"
        if kind in ("stem", "expand", "depthwise", "project"):
            return kind
        if kind == "squeeze_excite":
            return "squeeze-excite"
        return "head" if kind in ("head_conv", "head_dense", "classifier") else "rest"
    # An operation of the training step itself, outside the model and its loss, belongs to the update. The update's last
    # operation keeps or skips the update, in a function of its own: 'jit(train_step)/jit(_where)/select_n'.
    return "optimizer, averages" if re.fullmatch(r"jit\(train_step\)/(jit\(\w+\)/)*[\w.]+", label) else "rest"


_GROUPS = (
    "preview, coefficients",
    "stem",
    "expand",
    "depthwise",
    "project",
    "squeeze-excite",
    "norm, activation",
    "head",
    "optimizer, averages",
    "copies",
    "collectives",
    "rest",
)


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


# The printed report


def table(report: dict[str, Any]) -> str:
    """Returns the report as lines to print."""
    hbm, images = report["hbm_bytes_per_device"], report["images"]
    slices = f"{report['slices']} x " if report["slices"] > 1 else ""
    lines = [
        f"{report['what']} step on {slices}{report['topology']}: {report['chips']} chips, {report['hosts']} hosts, "
        f"{images['step']} images a step, {images['per_chip']} a chip, fsdp {report['fsdp']}",
        "",
        "HBM of a device, GiB: " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in hbm.items()),
        f"  (available: what libtpu lets a program use) -> {'fits' if report['fits'] else 'DOES NOT FIT'}",
    ]
    if "largest_per_chip_batch" in report:
        lines.append(f"largest batch that fits: {report['largest_per_chip_batch']} images a chip")
    if not report["fits"]:
        return "\n".join(lines)
    total = report["total"]
    lines += ["", f"{'estimates, a step':24}{'ms':>9}{'share':>7}{'M cycles':>10}{'HBM MB':>9}{'sent MB':>9}"]
    for name, cost in [*report["groups"].items(), ("total", total)]:
        share = cost["seconds"] / total["seconds"]
        lines.append(
            f"{name:24}{cost['seconds'] * 1e3:9.3f}{share:7.1%}{cost['cycles'] / 1e6:10.2f}"
            f"{cost['hbm_bytes'] / 1e6:9.1f}{cost['network_bytes'] / 1e6:9.2f}"
        )
    between = report["between_slices"]
    if between["bytes"]:
        took = "an unknown time" if between["seconds"] is None else f"{between['seconds'] * 1e3:.3f} ms"
        lines.append(f"{'between slices':24}{between['bytes'] / 1e6:.2f} MB a device in {took}")
    price = "" if report["epoch_price"] is None else f", price {report['epoch_price']:,.2f}"
    lines += [
        f"{total['unestimated']} operations have no estimate of cycles and count by their bytes",
        f"FLOPs of a device, by XLA's count: {report['flops_per_device']:.4g}",
        f"{report['images_per_second']:,.0f} images/s; an epoch: {report['epoch_hours'] * 60:,.2f} minutes, "
        f"{report['epoch_chip_hours']:,.3f} chip-hours{price}; "
        f"all {report['epochs']:g} of them: {report['epochs'] * report['epoch_chip_hours']:,.1f} chip-hours",
        "",
        report["bias"],
    ]
    return "\n".join(lines)
