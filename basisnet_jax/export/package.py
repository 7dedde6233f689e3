"""--mode=export: writes a trained run as files for phones and servers, each checked on real images before that.

`docs/guides/deploy.md` explains the files.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
from etils import epath

from basisnet_jax.config import Config, validate
from basisnet_jax.errors import UserError
from basisnet_jax.experiment.model import eval_crop, model_cost
from basisnet_jax.experiment.network_files import NetworkFacts
from basisnet_jax.experiment.run import make_experiment
from basisnet_jax.export import browser, card, stablehlo
from basisnet_jax.export.checks import Logits, convert_and_check, differences
from basisnet_jax.export.folded import OUTPUTS, Network
from basisnet_jax.host import files as file_lib
from basisnet_jax.host import installed, terminal
from basisnet_jax.inference.trained_run import OpenedRun, open_trained, rule_of
from basisnet_jax.models.cost import Cost
from basisnet_jax.serving import exit_rule
from basisnet_jax.serving.exit_rule import ChosenRule, ExitRule
from basisnet_jax.serving.export import Export
from basisnet_jax.serving.formats import CONFIG, FORMATS, check_installed
from basisnet_jax.serving.manifest import (
    CARD,
    LABELS,
    NAME,
    Accuracy,
    Data,
    Input,
    Manifest,
    Top1,
    TwoStages,
    file_facts,
)
from basisnet_jax.settings.declare import as_json
from basisnet_jax.settings.groups import ExportSettings, Settings
from basisnet_jax.training.metrics import is_correct
from basisnet_jax.workdir.run_folder import is_export, portable

MAX_LOSS = 0.005  # top-1 that a format may lose without a warning


def export_run(config: Config, workdir: str, threshold: float | None = None) -> str:
    """Writes `export/` into the workdir of a run, and returns the lines to print.

    Args:
      config: the run's config.
      workdir: the run's folder.
      threshold: an image exits where its largest probability is at least this; None takes the rule that
        --mode=evaluate chose, if there is one.

    Raises:
      UserError: config, data, workdir or checkpoint do not fit, a format's packages are missing, a file's answers
        differ from the network's, the rule was chosen with other weights, there is a threshold but no preview that can
        answer alone, or the workdir cannot be written.
    """
    config = validate(config)
    check_installed(config.export.formats)
    with terminal.Progress() as progress:
        return _export(config, workdir, threshold, progress)


def _export(config: Settings, workdir: str, threshold: float | None, progress: terminal.Progress) -> str:
    page = page_runtime(config.export, progress)
    progress.stage("opening run and data")
    if is_export(workdir):
        raise UserError(f"{workdir} is an export; give the --workdir of a run, or freeze a network with --specialize.")
    opened, network = open_network(config, workdir)
    network = dataclasses.replace(network, early_exit=config.export.early_exit)
    preview = network.stages_of_variables().first
    if preview is None:
        exit_rule.rule_without_preview(threshold)
    chosen = _rule(opened, threshold) if preview else None
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
    rule, cost = chosen.rule if chosen else None, cost_of(network)
    reached = Accuracy(
        f"{len(labels_N)} of {opened.data_name} {config.data.eval_split}",
        {name: top1(x, labels_N, rule, cost) for name, x in logits.items()},
    )
    manifest = dataclasses.replace(describe(opened, network, files, logits, reached), rule=chosen)
    shown = os.path.join(workdir, "export")
    return write(opened.folder / "export", files, manifest, opened.classes, page, shown=shown)


def page_runtime(settings: ExportSettings, progress: terminal.Progress) -> dict[str, bytes]:
    """Gets LiteRT.js if a page is wanted; {} otherwise. Raises UserError as `browser.litert_js`."""
    if "web" not in settings.formats:
        return {}
    progress.stage("getting LiteRT.js")
    return browser.litert_js(settings.web_runtime)


def open_network(config: Config, workdir: str) -> tuple[OpenedRun, Network]:
    """Opens a trained run and its network to export, in float32: phones and servers round in their own ways."""
    # Pallas kernels need a batch of a known size.
    opened = open_trained(workdir, config, dtype="float32", pallas_kernels=False)
    network = Network(
        model=opened.model,
        variables=opened.variables,
        warm_start=opened.warm_start_left,
        side=opened.side,
        channels=opened.channels,
        batch=opened.config.export.batch,
        facts=NetworkFacts.of(
            dataclasses.replace(opened.config.model, dtype="float32"),
            classes=list(opened.classes),
            side=opened.side,
            channels=opened.channels,
            warm_start=opened.warm_start_left,
        ),
    )
    return opened, network


def cost_of(network: Network) -> Cost:
    """Returns the cost of one image."""
    cost = model_cost(network.model, network.side, network.channels)
    return cost if network.early_exit else cost.without_exits()


def top1(logits: Logits, labels_N: np.ndarray, rule: ExitRule | None, cost: Cost) -> Top1:
    """Computes the top-1 of each stage, and of both stages together if there is a rule."""
    correct_N = is_correct(logits.specialist, labels_N)
    if logits.preview is None:
        return Top1(float(correct_N.mean()))
    preview_correct_N = is_correct(logits.preview, labels_N)
    both = None
    if rule:
        exits_N = rule.exits(logits.preview)
        both = TwoStages(
            top1=float(np.where(exits_N, preview_correct_N, correct_N).mean()),
            exit_rate=float(exits_N.mean()),
            madds=float(cost.average(exits_N.mean())),
        )
    return Top1(float(correct_N.mean()), float(preview_correct_N.mean()), both)


def lost_accuracy(own: Top1, formats: Mapping[str, Top1]) -> Iterator[str]:
    """Yields a sentence for each format that loses more than MAX_LOSS of the network's own top-1.

    Args:
      own: the network's top-1.
      formats: {format: its top-1}.
    """
    for name, reached in formats.items():
        for stage in ("specialist", "preview"):
            before, after = getattr(own, stage), getattr(reached, stage)
            if before is not None and before - after > MAX_LOSS:
                yield (
                    f"{stage}.{name} loses {100 * (before - after):.1f} points of top-1: {after:.4f}, where the "
                    f"network has {before:.4f}"
                )


def _rule(opened: OpenedRun, threshold: float | None) -> ChosenRule | None:
    """Returns the rule of the user or of --mode=evaluate; None without either. Raises UserError as `rule_of`."""
    if threshold is None and not (opened.folder / "evaluation" / exit_rule.FILE).exists():
        return None
    return rule_of(opened, threshold)


def describe(
    opened: OpenedRun,
    network: Network,
    files: Mapping[str, bytes],
    logits: Mapping[str, Logits],
    accuracy: Accuracy,
    own: str = "jax",
) -> Manifest:
    """Describes an export's network and files.

    Args:
      opened: the run.
      network: the network that was exported.
      files: {name: content} of the stages' files.
      logits: of the network ('jax') and of each format.
      accuracy: of the network and of each format.
      own: the network's name in `accuracy`.

    Returns:
      The manifest, without the rule.
    """
    crop, cost = eval_crop(opened.config.data), cost_of(network)
    share = None if crop.padding is None else network.side / (network.side + crop.padding)
    formats = [name for name in logits if name != "jax"]
    errors: dict[str, float] = {}
    for name in formats:
        for stage, error, _ in differences(logits["jax"], logits[name]):
            file = FORMATS[name].file(stage, name)
            errors[file] = max(error, errors.get(file, 0.0))
    packages = sorted({package for name in formats for package in FORMATS[name].packages})
    # TensorFlow has one of two names.
    versions = {name: package.version for name in packages if (package := installed.find_installed(name))}
    small = network.model.preview_resolution
    return Manifest(
        step=opened.step,
        input=Input(
            side=network.side,
            channels=network.channels,
            color="RGB" if network.channels == 3 else "gray",
            batch=network.batch,
            dtype={"tflite": "float32", "onnx": "float32", "stablehlo": "uint8"},
            crop="none; all of the image, squeezed to a square"
            if share is None
            else f"the central square of {share:.4f} of the shorter side",
            crop_share=share,
            resize="a JPEG of at least 2, 4 or 8 times the size is decoded at 1/2, 1/4 or 1/8 of it; then area if "
            "it shrinks to a half or less, else bilinear",
            exif_orientation="applied; the image is turned upright first" if crop.exif_orientation else "ignored",
            preview_image=f"made inside the {'preview' if network.early_exit else 'specialist'}'s file, from the same "
            f"{network.side} x {network.side} "
            f"pixels: {small} x {small}, bilinear, antialiased"
            if network.model.preview
            else None,
        ),
        outputs={stage: list(OUTPUTS[stage]) for stage in network.stages().named()},
        madds=cost.madds(),
        parameters=cost.parameters,
        files={name: file_facts(content, errors.get(name)) for name, content in files.items()},
        labels=file_facts(_labels(opened.classes)),
        data=Data(opened.data_name, opened.config.data.train_split),
        config=portable(as_json(opened.config)),
        versions={**installed.versions(), **versions},
        accuracy=accuracy,
        expires={"stablehlo": stablehlo.expiry()} if "stablehlo" in formats else {},
        warnings=list(lost_accuracy(accuracy.top1[own], {name: accuracy.top1[name] for name in formats})),
    )


def _labels(classes: Sequence[str]) -> bytes:
    """Returns the content of labels.txt: a class a line, in the order of the logits."""
    return "".join(f"{name}\n" for name in classes).encode()


def write(
    out: epath.Path,
    files: Mapping[str, bytes],
    manifest: Manifest,
    classes: Sequence[str],
    page: Mapping[str, bytes],
    *,
    shown: str,
) -> str:
    """Writes all files of an export, and removes an older export's files.

    Args:
      out: the export's folder.
      files: {name: content} of the stages' files.
      manifest: the content of `manifest.json`.
      classes: names of the classes.
      page: LiteRT.js, as `page_runtime` returns it; {} writes no page.
      shown: the folder as the user gave it.

    Returns:
      The lines to print.

    Raises:
      UserError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        _remove_older(out)
        for name, content in files.items():
            file_lib.write(out / name, content)
        file_lib.write(out / LABELS, _labels(classes))
        if page:
            browser.write(out / browser.FOLDER, {**browser.served_files(files, page), LABELS: _labels(classes)})
        _write_description(out, manifest, classes)
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}); make it writable.") from None
    served = f"\nin a browser: python -m http.server --directory {shown}/{browser.FOLDER}" if page else ""
    return card.summary(shown, manifest) + served


def _write_description(out: epath.Path, manifest: Manifest, classes: Sequence[str]) -> None:
    """Writes the model card, and the manifest last: for the export, and for its page if there is one."""
    file_lib.write(out / CARD, card.model_card(manifest, classes))
    if (out / browser.FOLDER).exists():
        browser.write_manifest(out / browser.FOLDER, manifest)
    file_lib.write_json(out / NAME, manifest.to_json())


def _remove_older(out: epath.Path) -> None:
    """Removes an older export, manifest first: a killed export then leaves no manifest that describes other files."""
    (out / NAME).unlink(missing_ok=True)
    for old in out.iterdir():
        if old.suffix[1:] in FORMATS or old.name == CONFIG:
            old.unlink()
    for folder in ("evaluation", browser.FOLDER):
        if (out / folder).exists():
            (out / folder).rmtree()


def write_rule(folder: epath.Path, chosen: ChosenRule) -> None:
    """Replaces the exit rule in an export's manifest and card.

    The figures of both stages together under the old rule are removed too.

    Raises:
      OSError: the files cannot be written.
    """
    export = Export.open(os.fspath(folder))
    reached = export.manifest.accuracy
    without = {name: dataclasses.replace(row, two_stages=None) for name, row in reached.top1.items()}
    manifest = dataclasses.replace(export.manifest, rule=chosen, accuracy=dataclasses.replace(reached, top1=without))
    _write_description(folder, manifest, export.classes())
