"""--mode=export --specialize: freezes the specialist for one place, as a plain static network.

The preview's coefficients on a user's own images are averaged, and the specialist's kernels are synthesized once with
that average. The result has no preview and no bases, and costs what the backbone costs. The printed figures compare
the result with the uniform average of the bases.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from basisnet_jax.config import Config, validate
from basisnet_jax.data import datasets, preprocess
from basisnet_jax.errors import UserError
from basisnet_jax.experiment.model import eval_crop
from basisnet_jax.export.checks import Logits, by_jax, convert_and_check, joined
from basisnet_jax.export.folded import Network
from basisnet_jax.export.package import describe, open_network, page_runtime, write
from basisnet_jax.host import files as file_lib
from basisnet_jax.host import terminal
from basisnet_jax.images.files import find_images, read_images
from basisnet_jax.inference.trained_run import OpenedRun
from basisnet_jax.models import folding
from basisnet_jax.serving.formats import check_installed
from basisnet_jax.serving.image_files import READ_AT_ONCE
from basisnet_jax.serving.manifest import Accuracy, Top1
from basisnet_jax.settings.groups import Settings
from basisnet_jax.workdir.run_folder import without_folders

_FEATURE = re.compile(r"(\w+)=([\w -]+)")  # of a data set, and its value


def mean_coefficients(network: Network, batches: Iterable[np.ndarray]) -> np.ndarray:
    """Returns float64[L, N]: the preview's coefficients, averaged over images uint8[b, side, side, channels]."""
    preview = network.stages().first
    assert preview is not None
    first, total, count = jax.jit(preview), np.zeros(()), 0
    for images_BxHxWxC in batches:
        coefficients_BxLxN = np.asarray(first(images_BxHxWxC)[1], np.float64)
        total, count = total + coefficients_BxLxN.sum(axis=0), count + len(coefficients_BxLxN)
    return np.asarray(total / count)


def frozen(network: Network, coefficients_LxN: np.ndarray) -> Network:
    """Returns the static network: the network's specialist with these coefficients for every image."""
    model, variables = folding.freeze(network.model, network.variables, coefficients_LxN.astype(np.float32))
    facts = network.facts and dataclasses.replace(
        network.facts, model={**network.facts.model, "routing": "static"}, warm_start=0.0
    )
    return dataclasses.replace(network, model=model, variables=variables, warm_start=0.0, facts=facts)


def specialize_run(config: Config, workdir: str, pattern: str, out: str | None = None) -> str:
    """Writes a network that is frozen for one place, and returns the lines to print.

    Args:
      config: the run's config.
      workdir: folder of the run, or of an export with the format 'safetensors'.
      pattern: a folder of images, or a pattern of their names such as 'photos/*.jpg'; see `folder.find_images`. If all
        images lie in folders named as classes, these are taken as their classes. Or a feature of the data set and its
        value, such as 'script=hangul': the images of the evaluation split that have it.
      out: the folder to write; None is `specialized/` in the workdir.

    Raises:
      UserError: as `package.export_run`; or the network has no preview, no image matches, or a file is not an image.
    """
    config = validate(config)
    check_installed(config.export.formats)
    with terminal.Progress() as progress:
        return _specialize(config, workdir, pattern, out or os.path.join(workdir, "specialized"), progress)


def _specialize(config: Settings, workdir: str, pattern: str, out: str, progress: terminal.Progress) -> str:
    page = page_runtime(config.export, progress)
    progress.stage("opening the run")
    opened, network = open_network(config, workdir)
    if network.model.preview is None:
        raise UserError(
            f"--specialize={pattern}: the run in {workdir} has no preview, so it has no coefficients to "
            "average; leave out --specialize."
        )
    progress.stage("averaging coefficients")
    feature = _FEATURE.fullmatch(pattern)
    pixels, labels_N = _images_with(opened, *feature.groups()) if feature else _images_of_files(opened, pattern)
    batches = [pixels[start : start + READ_AT_ONCE] for start in range(0, len(pixels), READ_AT_ONCE)]

    coefficients_LxN = mean_coefficients(network, batches)
    uniform_LxN = np.full_like(coefficients_LxN, 1 / coefficients_LxN.shape[1])
    here, uniform = frozen(network, coefficients_LxN), frozen(network, uniform_LxN)
    contents, logits = convert_and_check(here, opened.config.export.formats, batches, len(pixels), progress)
    full = _run(network, batches)
    formats = {name: x for name, x in logits.items() if name != "jax"}
    answers = {"frozen here": logits["jax"], "uniform average": _run(uniform, batches), "both stages": full, **formats}
    truth_N = full.specialist.argmax(-1) if labels_N is None else labels_N
    truth = "" if labels_N is not None else ", taking both stages' answers for true"
    reached = {name: Top1(float((x.specialist.argmax(-1) == truth_N).mean())) for name, x in answers.items()}
    photos = f"{len(pixels)} images of {without_folders(pattern)}"
    manifest = dataclasses.replace(
        describe(opened, here, contents, logits, Accuracy(photos + truth, reached), own="frozen here"),
        frozen=f"none, frozen for {photos}",
        coefficients=coefficients_LxN.tolist(),
    )
    return write(file_lib.absolute(out), contents, manifest, opened.classes, page, shown=out)


def _images_of_files(opened: OpenedRun, pattern: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns uint8[M, side, side, channels], and int[M] if all files lie in folders named as classes."""
    files, bad = find_images(pattern, "specialize"), list[str]()
    images = dict(read_images(files, opened.side, opened.channels, eval_crop(opened.config.data), bad))
    if bad:
        raise UserError(f"{bad[0]}; {len(bad)} of {len(files)} files of --specialize are not images.")
    return np.stack(list(images.values())), _labels(files, opened.classes)


def _images_with(opened: OpenedRun, feature: str, value: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the evaluation images whose feature has a value, uint8[M, side, side, channels], and their labels."""
    settings = opened.config.data
    data = datasets.open_dataset(
        settings.name, settings.dir, settings.train_split, settings.eval_split, settings.eval_share
    )
    number = data.number_of(feature, value)
    crop, found = eval_crop(settings), []
    for start in range(0, len(data.eval), READ_AT_ONCE):
        examples = data.eval.__getitems__(range(start, min(start + READ_AT_ONCE, len(data.eval))))
        found += [
            preprocess.load_eval(example, opened.side, opened.channels, data.num_classes, crop)
            for example in examples
            if example[feature] == number
        ]
    if not found:
        raise UserError(f"--specialize={feature}={value}: no image of {settings.eval_split} has it; take another.")
    return np.stack([image["image"] for image in found]), np.array([image["label"] for image in found])


def _run(network: Network, batches: Sequence[np.ndarray]) -> Logits:
    return joined(list(map(by_jax(network), batches)))


def _labels(files: Sequence[str], classes: Sequence[str]) -> np.ndarray | None:
    """Returns the labels of files that lie in folders named as classes; None if a file does not."""
    folders = [os.path.basename(os.path.dirname(file)) for file in files]
    if not all(name in classes for name in folders):
        return None
    return np.array([classes.index(name) for name in folders])
