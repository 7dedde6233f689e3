"""Whole steps on the device: losses beside the CPU's, time, launches, memory, a profile; and two-stage inference."""

import dataclasses
import functools
import importlib
import pathlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import gpu_programs
import gpu_tasks
import jax
import ml_collections
import numpy as np
import rivals
import timing
import two_stage

from basisnet_jax import config as config_lib
from basisnet_jax.data import datasets
from basisnet_jax.experiment.run import Experiment, make_experiment
from basisnet_jax.host import mesh as mesh_lib
from basisnet_jax.models.architectures import ARCHITECTURES, MOBILENET_V3_LARGE
from basisnet_jax.training.state import TrainState

BLOCKS = "mobilenet_v3_large_blocks"  # this module's backbone of some of the blocks
LOSS_TOLERANCES = {"float32": 1e-2, "bfloat16": 1e-1}  # of a loss, relative to the CPU's in float32
TRACE_BYTES = 20 * 2**20  # a larger trace is not kept
TRACED_STEPS = 3


# Experiments without data


def config_of(network: str, sizes: gpu_tasks.Sizes) -> ml_collections.ConfigDict:
    """Returns a config: of 'blocks', some blocks of MobileNetV3-Large, or of a file in configs/, made tiny if asked."""
    blocks = tuple(MOBILENET_V3_LARGE.blocks[index] for index in sizes.blocks)
    no_head = {"head_conv": None, "head_dense": None} if sizes.tiny else {}
    ARCHITECTURES[BLOCKS] = dataclasses.replace(MOBILENET_V3_LARGE, blocks=blocks, **no_head)
    if network == "blocks":
        config = config_lib.default()
        config.model.update(num_bases=sizes.num_bases, granularity="block", dtype="bfloat16")
        config.model.specialist.update(backbone=BLOCKS, resolution=sizes.side)
        config.optimizer.update(name="sgd", weight_decay=1e-5)
    else:
        config = importlib.import_module(f"configs.{network}").get_config()
        config.distill.teacher = ""
    if sizes.tiny:
        config.model.num_bases = sizes.num_bases
        config.model.specialist.update(backbone=BLOCKS, width=sizes.width, resolution=sizes.side)
        config.model.preview.update(backbone=BLOCKS, width=sizes.width, resolution=sizes.side // 2)
    return config


def experiment_of(config: ml_collections.ConfigDict, classes: int, channels: int, device: jax.Device) -> Experiment:
    """Returns the run of a config on one device, on a data set of which only the sizes exist."""
    split = datasets.SizeOnlySplit(100 * config.batch_size)
    data = datasets.Dataset(split, split, tuple(map(str, range(classes))), channels, identity="random")
    return make_experiment(config, [device], lambda *_: data)


def images_of(network: str, sizes: gpu_tasks.Sizes) -> tuple[int, int]:
    """Returns the classes and channels of a network's images."""
    return (10, 1) if network == "digits" else (sizes.classes, 3)


def batch_of(experiment: Experiment, size: int, *, training: bool = True) -> dict[str, jax.Array]:
    """Returns a batch of random images on the experiment's device."""
    rng, batch = np.random.default_rng(0), {}
    for name, shape in experiment.abstract_batch(size, training=training).items():
        limit = {"image": 256, "label": experiment.data.num_classes}.get(name)
        batch[name] = rng.integers(0, limit, shape.shape).astype(shape.dtype) if limit else np.ones(size, np.float32)
    return mesh_lib.to_global(experiment.mesh, batch)


def random_state(experiment: Experiment) -> TrainState:
    """Returns a state whose kernels are random numbers: `init_state` would be one more program to compile."""
    abstract, rng = experiment.abstract_state, np.random.default_rng(0)

    def random(leaf: Any) -> np.ndarray:
        return (0.05 * rng.normal(size=leaf.shape) if leaf.ndim > 1 else np.ones(leaf.shape)).astype(leaf.dtype)

    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    params, batch_stats = jax.tree.map(random, abstract.params), jax.tree.map(random, abstract.batch_stats)
    state = dataclasses.replace(
        state, params=params, ema_params=params, batch_stats=batch_stats, ema_batch_stats=batch_stats
    )
    return jax.tree.map(lambda array, leaf: jax.device_put(array.copy(), leaf.sharding), state, abstract)


# Losses


def losses_of(
    config: ml_collections.ConfigDict, sizes: gpu_tasks.Sizes, device: jax.Device, precision: str
) -> np.ndarray:
    """Returns the losses of a config's first steps on a device, on one batch."""
    experiment = experiment_of(config, *images_of("digits", sizes), device)
    state = random_state(experiment)
    batch = batch_of(experiment, config.batch_size)
    options = {"xla_backend_optimization_level": 0} if device.platform == "cpu" else None
    with jax.default_matmul_precision(precision):
        lowered = experiment.train_step().lower(state, batch, experiment.schedule, None)
        step, losses = lowered.compile(compiler_options=options), []
    for _ in range(sizes.loss_steps):
        state, metrics = step(state, batch, experiment.schedule, None)
        losses.append(metrics["loss"])
    return np.array(jax.device_get(losses))


def loss_tasks(sizes: gpu_tasks.Sizes) -> gpu_tasks.Tasks:
    """Yields the comparison of the losses of configs/digits.py with the CPU's, in every form and in both dtypes."""
    config = config_of("digits", sizes)
    config.batch_size = min(config.batch_size, 4 * sizes.batch)
    expected = losses_of(config, sizes, jax.devices("cpu")[0], "highest")

    def compared(changes: dict[str, Any], dtype: str, precision: str) -> dict[str, Any]:
        changed = config.copy_and_resolve_references()
        changed.model.update(dtype=dtype, **changes)
        losses = losses_of(changed, sizes, jax.devices()[0], precision)
        off = np.max(np.abs(losses - expected) / expected)
        return {
            "first_loss": float(losses[0]),
            "last_loss": float(losses[-1]),
            "cpus_last_loss": float(expected[-1]),
            "largest_difference": float(off),
            "right": bool(off <= LOSS_TOLERANCES[dtype]),
            "losses": losses.tolist(),
            "cpus_losses": expected.tolist(),
        }

    for form, changes in rivals.step_forms().items():
        name = f"{sizes.loss_steps} steps, {form}"
        yield f"{name}, float32", functools.partial(compared, changes, "float32", "highest")
        yield f"{name}, bfloat16", functools.partial(compared, changes, "bfloat16", "default")


# Steps


def variants(network: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name, changes of config.model) of each network to time; a static layer by 'taps' is XLA's on a GPU."""
    forms = rivals.step_forms()
    name = "synthesized" if network == "blocks" else "BasisNet"
    for form, changes in forms.items():
        yield f"static by {form}" if form != "taps" else "static", {"routing": "static", **changes}
    for form, changes in forms.items():
        yield f"{name} by {form}", changes


def compiled_call(
    config: ml_collections.ConfigDict, network: str, sizes: gpu_tasks.Sizes, what: str
) -> tuple[jax.stages.Compiled, Callable[[], Any], int]:
    """Returns the step 'train' or 'eval' as a program, a call that runs it on random images, and their number.

    The call of a training step continues from the state that the call before returned.
    """
    experiment = experiment_of(config, *images_of(network, sizes), jax.devices()[0])
    state = random_state(experiment)
    if what == "eval":
        images = experiment.plan.eval_batch_size
        batch, variables = batch_of(experiment, images, training=False), state.variables(ema=False)
        compiled = experiment.eval_step().lower(variables, np.float32(0), batch).compile()
        return compiled, lambda: compiled(variables, np.float32(0), batch), images
    images = experiment.plan.batch_size
    batch, schedule = batch_of(experiment, images), experiment.schedule
    compiled = experiment.train_step().lower(state, batch, schedule, None).compile()

    def call() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch, schedule, None)
        return metrics

    return compiled, call, images


def timed(config: ml_collections.ConfigDict, network: str, sizes: gpu_tasks.Sizes, form: str, what: str) -> Any:
    """Returns images a second, launches and memory of a step."""
    start, peak = time.perf_counter(), gpu_programs.device_peak()
    with rivals.layers_of(form):
        compiled, call, images = compiled_call(config, network, sizes, what)
    seconds = time.perf_counter() - start
    ms = gpu_programs.milliseconds(call, sizes)
    figures = {"images_per_second": 1e3 * images / ms, "ms": ms, "launches": gpu_programs.launches(compiled)}
    figures |= gpu_programs.bill(compiled)
    if (new_peak := gpu_programs.device_peak()) > peak:  # else an earlier program of this process had more
        figures["device_peak_gib"] = new_peak / gpu_programs.GIB
    if what == "train":
        metrics = jax.device_get(call())
        figures |= {"loss": float(metrics["loss"]), "skipped_updates": int(metrics["skipped"])}
    return {**figures, "compile_seconds": seconds}


def step_tasks(network: str, batches: tuple[int, ...], sizes: gpu_tasks.Sizes) -> gpu_tasks.Tasks:
    """Yields the training step of a network, static and synthesized by each form, at each batch size."""
    for batch in batches:
        for name, changes in variants(network):
            config = config_of(network, sizes)
            config.batch_size = config.eval.batch_size = batch
            config.model.update(changes)
            call = functools.partial(timed, config, network, sizes, "ours")
            yield f"{name}, {batch} images, training", functools.partial(call, "train")
            if network == "blocks":
                yield f"{name}, {batch} images, inference", functools.partial(call, "eval")
    if network == "blocks":
        config = config_of(network, sizes)
        config.batch_size = batches[0]
        call = functools.partial(timed, config, network, sizes, "vmapped", "train")
        yield f"synthesized by grouped convolution, {batches[0]} images, training", call


def block_tasks(sizes: gpu_tasks.Sizes) -> gpu_tasks.Tasks:
    """Yields the steps of some blocks of MobileNetV3-Large with a preview of negligible cost."""
    return step_tasks("blocks", (sizes.batch,), sizes)


def digits_tasks(sizes: gpu_tasks.Sizes) -> gpu_tasks.Tasks:
    """Yields the steps of configs/digits.py, which are launches and little else."""
    return step_tasks("digits", (4 if sizes.tiny else 32,), sizes)


def imagenet_tasks(sizes: gpu_tasks.Sizes) -> gpu_tasks.Tasks:
    """Yields the steps of configs/imagenet_mbv3.py without its teacher."""
    return step_tasks("imagenet_mbv3", sizes.imagenet_batches, sizes)


# Two stages, and a profile


def two_stage_tasks(sizes: gpu_tasks.Sizes) -> gpu_tasks.Tasks:
    """Yields the throughput of the two-stage classifier of configs/imagenet_mbv3.py: each stage alone, then by rate."""
    classifier = two_stage.make_classifier(config_of("imagenet_mbv3", sizes).model, 3, sizes.classes)
    batch = sizes.two_stage_batch

    def throughput(call: Callable[[], object]) -> dict[str, float]:
        ms = timing.medians(timing.interleaved({"": call}, rounds=sizes.rounds, turn=sizes.turn))[""]
        return {"images_per_second": 1e3 * batch / ms, "ms": ms}

    for name, call in two_stage.contestants(classifier, batch, sizes.exit_rates).items():
        title = f"{name} exit" if name.endswith("%") else name
        yield f"{title}, {batch} images", functools.partial(throughput, call)


def profile_tasks(sizes: gpu_tasks.Sizes) -> gpu_tasks.Tasks:
    """Yields what a trace of the synthesized blocks' training step shows; the trace is kept."""
    config = config_of("blocks", sizes)
    config.batch_size = sizes.batch

    def traced() -> dict[str, Any]:
        _, call, _ = compiled_call(config, "blocks", sizes, "train")
        jax.block_until_ready(call())
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level, options.host_tracer_level = 0, 1
        with tempfile.TemporaryDirectory() as trace:
            with jax.profiler.trace(trace, profiler_options=options):
                for _ in range(TRACED_STEPS):
                    metrics = call()
                jax.block_until_ready(metrics)
            (file,) = pathlib.Path(trace).rglob("*.xplane.pb")
            size, kept = file.stat().st_size, ""
            if size <= TRACE_BYTES:
                kept = str(shutil.copy(file, sizes.folder / "step.xplane.pb"))
            return {**read_trace(file), "trace_bytes": size, "kept_as": kept or "not kept, too large"}

    yield f"synthesized, {sizes.batch} images, training", traced


def read_trace(file: pathlib.Path) -> dict[str, Any]:
    """Returns a step's kernels and copies on the GPU, their time, and the operations that take most of it."""
    milliseconds, count = Counter(), 0
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if line.name.startswith("Stream"):
                for event in line.events:
                    count += 1
                    milliseconds[event.name] += event.duration_ns / 1e6
    return {
        "kernels_and_copies": count / TRACED_STEPS,
        "device_ms": sum(milliseconds.values()) / TRACED_STEPS,
        "most_ms": {name: ms / TRACED_STEPS for name, ms in milliseconds.most_common(25)},
    }
