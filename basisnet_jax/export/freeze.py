"""--mode=export --specialize: freezes the specialist for one place, as a plain static network.

The preview's coefficients on a user's own images are averaged, and the specialist's kernels are synthesized once with
that average. The result has no preview and no bases, and costs what the backbone costs. The printed figures compare
the result with the uniform average of the bases.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from basisnet_jax.config import Config, validate
from basisnet_jax.data.folder import find_images
from basisnet_jax.errors import UserError
from basisnet_jax.experiment.model import eval_crop
from basisnet_jax.export.checks import Logits, by_jax, convert_and_check, joined
from basisnet_jax.export.folded import Network
from basisnet_jax.export.package import describe, open_network, write
from basisnet_jax.host import terminal
from basisnet_jax.inference.image_files import READ_AT_ONCE, read_images
from basisnet_jax.models import folding
from basisnet_jax.serving.formats import check_installed
from basisnet_jax.serving.manifest import Accuracy, Top1
from basisnet_jax.settings.groups import Settings
from basisnet_jax.workdir.run_folder import without_folders


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


def specialize_run(config: Config, workdir: str, pattern: str) -> str:
    """Writes `specialized/` into the workdir of a run, and returns the lines to print.

    Args:
      config: the run's config.
      workdir: the run's folder.
      pattern: a folder of images, or a pattern of their names such as 'photos/*.jpg'; see `folder.find_images`. If all
        images lie in folders named as classes, these are taken as their classes.

    Raises:
      UserError: as `package.export_run`; or the run has no preview, no file matches, or a file is not an image.
    """
    config = validate(config)
    check_installed(config.export.formats)
    with terminal.Progress() as progress:
        return _specialize(config, workdir, pattern, progress)


def _specialize(config: Settings, workdir: str, pattern: str, progress: terminal.Progress) -> str:
    progress.stage("opening the run")
    opened, network = open_network(config, workdir)
    if network.model.preview is None:
        raise UserError(
            f"--specialize={pattern}: the run in {workdir} has no preview, so it has no coefficients to "
            "average; leave out --specialize."
        )
    files = find_images(pattern, "specialize")
    progress.stage("averaging coefficients")
    bad: list[str] = []
    images = dict(read_images(files, network.side, network.channels, eval_crop(opened.config.data), bad))
    if bad:
        raise UserError(f"{bad[0]}; {len(bad)} of {len(files)} files of --specialize are not images.")
    pixels = np.stack(list(images.values()))
    batches = [pixels[start : start + READ_AT_ONCE] for start in range(0, len(pixels), READ_AT_ONCE)]

    coefficients_LxN = mean_coefficients(network, batches)
    uniform_LxN = np.full_like(coefficients_LxN, 1 / coefficients_LxN.shape[1])
    here, uniform = frozen(network, coefficients_LxN), frozen(network, uniform_LxN)
    contents, logits = convert_and_check(here, opened.config.export.formats, batches, len(pixels), progress)
    full = _run(network, batches)
    formats = {name: x for name, x in logits.items() if name != "jax"}
    answers = {"frozen here": logits["jax"], "uniform average": _run(uniform, batches), "both stages": full, **formats}
    labels_N = _labels(files, opened.classes)
    truth_N = full.specialist.argmax(-1) if labels_N is None else labels_N
    truth = "" if labels_N is not None else ", taking both stages' answers for true"
    reached = {name: Top1(float((x.specialist.argmax(-1) == truth_N).mean())) for name, x in answers.items()}
    photos = f"{len(files)} images of {without_folders(pattern)}"
    manifest = dataclasses.replace(
        describe(opened, here, contents, logits, Accuracy(photos + truth, reached), own="frozen here"),
        frozen=f"none, frozen for {photos}",
        coefficients=coefficients_LxN.tolist(),
    )
    shown = os.path.join(workdir, "specialized")
    return write(opened.folder / "specialized", contents, manifest, opened.classes, shown=shown)


def _run(network: Network, batches: Sequence[np.ndarray]) -> Logits:
    return joined(list(map(by_jax(network), batches)))


def _labels(files: Sequence[str], classes: Sequence[str]) -> np.ndarray | None:
    """Returns the labels of files that lie in folders named as classes; None if a file does not."""
    folders = [os.path.basename(os.path.dirname(file)) for file in files]
    if not all(name in classes for name in folders):
        return None
    return np.array([classes.index(name) for name in folders])
