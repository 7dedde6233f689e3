"""Renders the data set `glyphs` from font files, and prints a SHA-256 of each split to compare the splits with."""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from basisnet_jax.data import glyph_fonts, record_files
from basisnet_jax.data.glyphs import Glyphs
from basisnet_jax.errors import UserError
from basisnet_jax.host.command_line import exit_quietly_on_broken_pipe


def digest(source: Sequence[dict[str, Any]]) -> str:
    """Returns the SHA-256 of a split's examples in their order: pixels, label, character, font.

    Pixels are hashed rather than PNG bytes, which may differ with the encoder's version.

    Args:
      source: a split as `Glyphs.as_data_source` reads it.
    """
    total = hashlib.sha256()
    for example in source:
        total.update(np.ascontiguousarray(example["image"]).tobytes())
        total.update(f"{int(example['label'])} {_text(example['character'])} {_text(example['font'])}\n".encode())
    return total.hexdigest()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def prepare(builder: Glyphs) -> None:
    """Renders the data set into its `data_dir`, unless it is already there.

    Raises:
      UserError: fonts are missing or have changed, there are too few of them, or the folder cannot be written.
    """
    if builder.is_prepared():
        print(f"{builder.data_dir} holds the data set; remove that folder to render it again")
        return
    tfds.disable_progress_bar()
    try:
        builder.download_and_prepare()
    except (OSError, RuntimeError) as error:  # RuntimeError: of the records' writer, where the disk is full
        said = (error.strerror if isinstance(error, OSError) else None) or record_files.reason(error)
        raise UserError(f"cannot write {builder.data_dir} ({said}); make room, or choose another --data_dir.") from None


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m basisnet_jax.data.prepare_glyphs", description=__doc__)
    parser.add_argument("--data_dir", help="where TFDS keeps prepared data (default: TFDS's own)")
    parser.add_argument("--root", default="/", help="folder that the packages are unpacked in (default: /)")
    parser.add_argument("--fonts_dir", default="", help="folder of font files to use instead of the packages")
    parser.add_argument("--scripts", default="", help="scripts whose characters are the classes, as in latin,greek")
    parser.add_argument("--packages", action="store_true", help="print the packages as name=version, and nothing else")
    given = parser.parse_args()
    try:
        if given.packages:
            for name, entry in glyph_fonts.listed()["packages"].items():
                print(f"{name}={entry['version']}")
            return
        scripts = [script for script in given.scripts.split(",") if script]
        builder = Glyphs(root=given.root, fonts_dir=given.fonts_dir, scripts=scripts, data_dir=given.data_dir)
        prepare(builder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for split in builder.info.splits:
        source = builder.as_data_source(split=split)
        print(f"{split:14}{len(source):8} images, SHA-256 {digest(source)}")


if __name__ == "__main__":
    with exit_quietly_on_broken_pipe():
        main()
