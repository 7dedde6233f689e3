"""Runs every file in its own runtime on real images, against the trained network, before the file is written."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from basisnet_jax.errors import UserError
from basisnet_jax.experiment import network_files
from basisnet_jax.export import publishers
from basisnet_jax.export.folded import Network
from basisnet_jax.export.formats import LOADERS, convert
from basisnet_jax.host.command_line import first_line
from basisnet_jax.host.terminal import Progress
from basisnet_jax.models.basisnet import Variables
from basisnet_jax.serving.formats import FORMATS

CALIBRATION_IMAGES = 100
TOLERANCE = 1e-4  # of an image: largest difference of its logits / its largest logit


class Logits(NamedTuple):
    """Logits of N images; `preview` is None for a network without a preview."""

    preview: np.ndarray | None
    specialist: np.ndarray


Answer = Callable[[np.ndarray], Logits]  # takes uint8[B, side, side, channels]


def by_jax(network: Network) -> Answer:
    """Makes a function that runs the trained model as evaluation does, with nothing folded."""
    first, second = network.stages_of_variables()

    @jax.jit
    def both(variables: Variables, images_BxHxWxC: jax.Array) -> Logits:
        answers = first(variables, network.warm_start, images_BxHxWxC) if first else (None,)
        return Logits(answers[0], second(variables, network.warm_start, images_BxHxWxC, *answers[1:]))

    def answer(images_BxHxWxC: np.ndarray) -> Logits:
        return jax.device_get(both(network.variables, images_BxHxWxC))

    return answer


def by_files(network: Network, files: Mapping[str, bytes], suffix: str) -> Answer:
    """Makes a function that runs a format's files in its runtime, the specialist on the preview's coefficients.

    Args:
      network: the network that was converted; what its files do not say is taken from it.
      files: {name: content}.
      suffix: the format's name.

    Raises:
      UserError: the runtime cannot run a file.
    """
    if suffix == "safetensors":
        facts, model, variables = network_files.from_files(files.__getitem__)
        return by_jax(dataclasses.replace(network, model=model, variables=variables, warm_start=facts.warm_start))
    if FORMATS[suffix].publisher:
        return by_jax(publishers.from_files(network, files, suffix))
    second = _loaded(files, f"specialist.{suffix}", suffix)
    first = _loaded(files, f"preview.{suffix}", suffix) if f"preview.{suffix}" in files else None

    def answer(images_BxHxWxC: np.ndarray) -> Logits:
        if first is None:
            return Logits(None, np.asarray(second(images_BxHxWxC)[0]))
        preview_BxK, coefficients_BxLxN = first(images_BxHxWxC)
        return Logits(np.asarray(preview_BxK), np.asarray(second(images_BxHxWxC, coefficients_BxLxN)[0]))

    return answer


def _loaded(files: Mapping[str, bytes], name: str, suffix: str) -> Callable[..., Sequence[Any]]:
    runtime = FORMATS[suffix].runtime
    try:
        return LOADERS[runtime](files[name])
    except RuntimeError as error:  # XNNPACK refuses some ranges of int8
        raise UserError(
            f"{name} cannot be run by {runtime} ({first_line(error)}); nothing was written: leave {suffix!r} out of "
            "config.export.formats."
        ) from None


def convert_and_check(
    network: Network,
    formats: Iterable[str],
    batches: Iterable[np.ndarray],
    count: int = 0,
    progress: Progress | None = None,
) -> tuple[dict[str, bytes], dict[str, Logits]]:
    """Converts the network to every format, and runs every file on every image.

    Args:
      network: the network to convert.
      formats: names of FORMATS.
      batches: uint8[b, side, side, channels] each; the first images calibrate 'int8.tflite'.
      count: number of images, for the progress.
      progress: shows which files are converted and checked; None is silent.

    Returns:
      {file: content}, and the logits of all images by 'jax' and by each format.

    Raises:
      UserError: an exact format's logits differ from the model's by more than TOLERANCE or give an image another
        class, a format's logits are not finite, or a runtime cannot run a file.
    """
    formats = tuple(name for name in formats if not FORMATS[name].page)
    batches, progress = iter(batches), progress or Progress(silent=True)
    first = list(itertools.islice(batches, 1))
    files = convert(network, formats, first[0][:CALIBRATION_IMAGES], progress)
    answers = {"jax": by_jax(network), **{name: by_files(network, files, name) for name in formats}}
    pieces: dict[str, list[Logits]] = {name: [] for name in answers}
    progress.stage("checking every file on every image", count)
    for images_BxHxWxC in itertools.chain(first, batches):
        for name, answer in answers.items():
            pieces[name].append(answer(images_BxHxWxC))
        progress.advance(len(images_BxHxWxC))
    logits = {name: joined(parts) for name, parts in pieces.items()}
    for name in formats:
        exact = FORMATS[name].exact
        for stage, error, differing in differences(logits["jax"], logits[name]):
            file = f"{FORMATS[name].file(stage, name)}, run by {FORMATS[name].runtime},"
            if not error < math.inf or (exact and error > TOLERANCE):  # `not <`: NaN fails it
                raise UserError(
                    f"{file} is off by {error:.1e} of an image's largest logit, but {TOLERANCE:.0e} is allowed where "
                    "nothing is quantized; nothing was written: leave the format out of config.export.formats, and "
                    "report this error."
                )
            if exact and differing:
                count = len(logits["jax"].specialist)
                raise UserError(f"{file} gives {differing} of {count} images another class; nothing was written.")
    return files, logits


def joined(parts: Sequence[Logits]) -> Logits:
    """Concatenates the logits of batches of images."""
    previews = [part.preview for part in parts if part.preview is not None]
    specialist = np.concatenate([part.specialist for part in parts])
    return Logits(np.concatenate(previews) if previews else None, specialist)


def differences(expected: Logits, got: Logits) -> Iterable[tuple[str, float, int]]:
    """Yields (stage, worst relative error, number of images that get another class)."""
    for stage, want_NxK, have_NxK in zip(Logits._fields, expected, got, strict=True):
        if want_NxK is not None and have_NxK is not None:
            error_N = np.abs(have_NxK - want_NxK).max(axis=-1) / np.abs(want_NxK).max(axis=-1)
            yield stage, float(error_N.max()), int((have_NxK.argmax(-1) != want_NxK.argmax(-1)).sum())
