"""Finds and reads image files."""

import glob
import logging
import os
from collections.abc import Iterable, Iterator

import numpy as np

from basisnet_jax.errors import UserError
from basisnet_jax.images.crop import EvalCrop
from basisnet_jax.images.decode import BadExampleError
from basisnet_jax.images.load import load_image

_LOG = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".webp", ".bmp")
OF_THE_SYSTEM = ("thumbs.db", "desktop.ini")  # with hidden files, what Windows and macOS put beside images


def find_images(pattern: str, flag: str) -> list[str]:
    """Returns the names of image files, sorted.

    Args:
      pattern: a folder, for all images below it; or a pattern of names such as 'photos/*.jpg', where ** is any folders.
      flag: the flag that the user gave the pattern with, for messages.

    Raises:
      UserError: there are none.
    """
    if os.path.isdir(pattern):
        below = [os.path.join(place, name) for place, _, names in os.walk(pattern) for name in names]
        images = [file for file in below if file.lower().endswith(SUFFIXES) and not _is_hidden(file, pattern)]
        if not images:
            raise UserError(
                f"--{flag} = {pattern!r} is a folder without images ({', '.join(SUFFIXES)}); name another folder."
            )
        if skipped := len(below) - len(images):
            what = "1 file that is not an image is" if skipped == 1 else f"{skipped} files that are not images are"
            _LOG.warning("%s: %s skipped", pattern, what)
        return sorted(images)
    matched = glob.glob(pattern, recursive=True)
    images = [x for x in matched if not os.path.isdir(x) and os.path.basename(x).lower() not in OF_THE_SYSTEM]
    if images:
        return sorted(images)
    if matched:
        raise UserError(f"--{flag} = {pattern!r} matches only folders; name one folder, or image files.")
    raise UserError(f"--{flag} = {pattern!r} matches no files; quote the pattern, as in --{flag}='photos/*.jpg'.")


def _is_hidden(file: str, root: str) -> bool:
    """Returns whether the file or a folder between the root and the file has a hidden name."""
    return any(part.startswith(".") for part in os.path.relpath(file, root).split(os.sep))


def read_images(
    files: Iterable[str], side: int, channels: int, crop: EvalCrop, bad: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (file, its pixels as in evaluation); adds a sentence to `bad` for each file that is not an image."""
    for file in files:
        try:
            with open(file, "rb") as opened:
                encoded = opened.read()
            yield file, load_image(encoded, side, channels, crop)
        except BadExampleError as error:
            bad.append(f"{file} {error}")
        except OSError as error:
            bad.append(f"{file} cannot be read ({error.strerror})")
