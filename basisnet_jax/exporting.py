"""--mode=export: a trained run as files for phones and servers, each run on real images before it is written.

`docs/deploy.md` explains the files.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from basisnet_jax import files as file_lib
from basisnet_jax import report, terminal
from basisnet_jax.config import validate
from basisnet_jax.errors import UserError
from basisnet_jax.evaluate import is_correct
from basisnet_jax.experiment import make_experiment
from basisnet_jax.export import card
from basisnet_jax.export.checks import Logits, convert_and_check, differences
from basisnet_jax.export.formats import FORMATS, check_installed
from basisnet_jax.export.stages import OUTPUTS, Network
from basisnet_jax.models.cost import Cost
from basisnet_jax.networks import eval_crop, model_cost
from basisnet_jax.predict import OpenedRun, open_trained
from basisnet_jax.runtime import ExitRule


def export_run(config: ml_collections.ConfigDict, workdir: str) -> str:
    """Writes `export/` into the workdir of a run, and returns the lines to print.

    Raises:
      UserError: config, data, workdir or checkpoint do not fit, a format's packages are missing, a file answers
        otherwise than the network, or the workdir cannot be written.
    """
    validate(config)
    check_installed(config.export.formats)
    with terminal.Progress() as progress:
        return _export(config, workdir, progress)


def _export(config: ml_collections.ConfigDict, workdir: str, progress: terminal.Progress) -> str:
    progress.stage("opening run and data")
    opened, network = open_network(config, workdir)
    experiment = make_experiment(config, jax.devices()[:1], training=False)
    labels: list[np.ndarray] = []

    def batches() -> Iterable[np.ndarray]:
        labels.clear()
        for batch in experiment.eval_batches():
            good = np.asarray(batch["mask"]) > 0
            labels.append(np.asarray(batch["label"])[good])
            yield np.asarray(batch["image"])[good]

    images = experiment.plan.eval_examples
    files, logits = convert_and_check(network, config.export.formats, batches(), images, progress)
    labels_N = np.concatenate(labels)
    rule, cost = _rule(opened.folder) if network.model.preview else None, cost_of(network)
    found = {
        **describe(opened, network, files, logits),
        "rule": vars(rule) if rule else None,
        "accuracy": {
            "images": f"{len(labels_N)} of {opened.data_name} {config.data.eval_split}",
            **{name: accuracy(x, labels_N, rule, cost) for name, x in logits.items()},
        },
    }
    return write(opened.folder / "export", files, found, opened.classes)


def open_network(config: ml_collections.ConfigDict, workdir: str) -> tuple[OpenedRun, Network]:
    """A trained run and what of it is exported: float32, since phones and servers round in their own ways."""
    # Pallas kernels need a batch of a known size.
    opened = open_trained(workdir, config, dtype="float32", tpu_kernels=False)
    state, ema = opened.state, opened.config.eval.ema
    params, stats = (state.ema_params, state.ema_batch_stats) if ema else (state.params, state.batch_stats)
    variables = jax.device_get({"params": params, "batch_stats": stats})
    batch = config.export.batch
    return opened, Network(opened.model, variables, opened.warm_start_left, opened.side, opened.channels, batch)


def cost_of(network: Network) -> Cost:
    """Of one image."""
    return model_cost(network.model, network.side, network.channels)


def accuracy(logits: Logits, labels_N: np.ndarray, rule: ExitRule | None, cost: Cost) -> dict[str, Any]:
    """Top-1 of each stage, and of both under a rule."""
    correct_N = is_correct(logits.specialist, labels_N)
    found: dict[str, Any] = {"specialist_top1": float(correct_N.mean())}
    if logits.preview is None:
        return found
    preview_correct_N = is_correct(logits.preview, labels_N)
    found["preview_top1"] = float(preview_correct_N.mean())
    if rule:
        exits_N = rule.exits(logits.preview)
        found["two_stages"] = {
            "top1": float(np.where(exits_N, preview_correct_N, correct_N).mean()),
            "exit_rate": float(exits_N.mean()),
            "madds": float(cost.average(exits_N.mean())),
        }
    return found


def _rule(folder: epath.Path) -> ExitRule | None:
    """What --mode=evaluate chose; None if it has not been run."""
    path = folder / "evaluation" / "results.json"
    return ExitRule(**json.loads(path.read_text())["early_termination"]["rule"]) if path.exists() else None


def describe(
    opened: OpenedRun, network: Network, files: Mapping[str, bytes], logits: Mapping[str, Logits]
) -> dict[str, Any]:
    """What every `manifest.json` holds."""
    crop, cost = eval_crop(opened.config.data), cost_of(network)
    padding = crop.padding
    errors = {
        f"{stage}.{name}": error
        for name in logits
        if name != "jax"
        for stage, error, _ in differences(logits["jax"], logits[name])
    }
    packages = {package for name in logits for package in (FORMATS[name].packages if name in FORMATS else ())}
    return {
        "step": int(opened.state.step),
        "input": {
            "side": network.side,
            "channels": network.channels,
            "layout": "NHWC",
            "color": "RGB" if network.channels == 3 else "gray",
            "range": [0, 255],  # what the networks do to pixels is in the files
            "dtype": {"tflite": "float32", "onnx": "float32", "stablehlo": "uint8"},
            "batch": {"tflite": network.batch, "onnx": network.batch, "stablehlo": "any"},
            "crop": "none; all of the image, squeezed to a square"
            if padding is None
            else f"the central square of {network.side / (network.side + padding):.4f} of the shorter side",
            "resize": "area if it shrinks to a half or less, else bilinear",
            "exif_orientation": "applied; the image is turned upright first" if crop.exif_orientation else "ignored",
        },
        "outputs": {stage: OUTPUTS[stage] for stage in network.stages().named()},
        "madds": cost.madds(),
        "parameters": cost.parameters,
        "files": {
            name: {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "worst_relative_error": errors[name],
            }
            for name, content in files.items()
        },
        "data": {"name": opened.data_name, "train_split": opened.config.data.train_split},
        "config": json.loads(opened.config.to_json()),
        "versions": {**report.versions(), **_versions(packages)},
    }


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in sorted(packages):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # TensorFlow has one of two names
    return found


def write(out: epath.Path, files: Mapping[str, bytes], manifest: dict[str, Any], classes: Iterable[str]) -> str:
    """Writes all files of an export, removes those of an older one, and returns the lines to print."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for old in out.iterdir():
            if old.suffix[1:] in FORMATS:
                old.unlink()
        for name, content in files.items():
            file_lib.write(out / name, content)
        file_lib.write(out / "labels.txt", "".join(f"{name}\n" for name in classes))
        file_lib.write(out / "model_card.md", card.model_card(manifest, tuple(classes)))
        report.write_json(out / "manifest.json", manifest)
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}); make it writable.") from None
    return card.summary(out, manifest)
