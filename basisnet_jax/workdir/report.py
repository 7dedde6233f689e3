"""What a run says when it is done: the lines that are printed, and files in its workdir."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from typing import TYPE_CHECKING, Any

import jax
import ml_collections
from etils import epath

import basisnet_jax
from basisnet_jax import config as config_lib
from basisnet_jax.host import files

if TYPE_CHECKING:
    from clu import metric_writers

PACKAGES = (
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "clu",
    "grain",
    "tensorflow-datasets",
    "ml-collections",
    "numpy",
)


def versions() -> dict[str, str]:
    """Of everything that a result may depend on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"basisnet_jax": basisnet_jax.__version__, "python": platform.python_version(), **found}


def versions_line() -> str:
    """Returns the versions of this package, JAX and Python, as they are printed."""
    return f"basisnet_jax {basisnet_jax.__version__}, JAX {jax.__version__}, Python {platform.python_version()}"


def write_json(path: epath.Path, content: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    files.write(path, json.dumps(content, indent=2) + "\n")


def summary(results: dict[str, Any]) -> str:
    """The lines that a finished run prints."""
    evaluation, madds = results["eval"], results["madds"]
    top1 = f"top-1 {evaluation['top1']:.4f} (top-5 {evaluation['top5']:.4f}) on {evaluation['count']} images"
    if evaluation["preview_top1"] is not None:
        top1 += f"; the preview alone {evaluation['preview_top1']:.4f}"
    stages = " + ".join(f"{name} {madds[name]:,}" for name in ("preview", "synthesis", "specialist") if madds[name])
    rate = results["images_per_second"]  # None where no step was timed: the first step of each process is not
    speed = "" if rate is None else f", {rate:.0f} images/s"
    return "\n".join(
        [
            top1,
            f"{madds['total']:,} multiply-adds an image ({stages}), {results['parameters']:,} parameters",
            f"{results['step']} steps in {results['train_seconds']:.0f} s{speed}",
        ]
    )


def evaluation_line(step: int, epoch: int, evaluation: dict[str, float]) -> str:
    """Returns the line that is printed of an evaluation while a run trains."""
    preview = f", the preview alone {evaluation['preview_top1']:.4f}" if "preview_top1" in evaluation else ""
    return f"step {step:,}, epoch {epoch}: top-1 {evaluation['top1']:.4f}{preview}, loss {evaluation['loss']:.4f}"


def event_writer(folder: epath.Path, config: ml_collections.ConfigDict | None) -> metric_writers.MetricWriter:
    """Returns what writes TensorBoard's event files; of many processes the first alone writes.

    Args:
      folder: of the event files.
      config: written once as text and as hyperparameters, where a run is new.
    """
    from clu import metric_writers  # imports TensorFlow, which takes seconds: not at the top

    if jax.process_index() > 0:
        return metric_writers.MultiWriter([])
    writer = metric_writers.SummaryWriter(os.fspath(folder))
    if config is not None:
        fields = config_lib.flatten(config)
        writer.write_texts(0, {"config": "\n".join(f"    {name} = {value!r}" for name, value in fields.items())})
        writer.write_hparams({x: y if isinstance(y, bool | int | float | str) else str(y) for x, y in fields.items()})
    return writer


def write_evaluation(writer: metric_writers.MetricWriter, step: int, evaluation: dict[str, float]) -> None:
    """Writes an evaluation's metrics into the event files, its count left out: it is always the same."""
    writer.write_scalars(step, {f"eval/{name}": value for name, value in evaluation.items() if name != "count"})
