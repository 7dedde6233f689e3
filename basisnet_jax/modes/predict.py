"""--mode=predict: classifies image files."""

import sys
from collections.abc import Mapping
from typing import Any

from basisnet_jax.errors import UserError
from basisnet_jax.modes.mode import IMAGES, MODEL, THRESHOLD, Command, Flag, Mode


def _check(flags: Mapping[str, Any]) -> None:
    from basisnet_jax.serving.exit_rule import threshold_rule

    if flags["threshold"] is not None:
        threshold_rule(flags["threshold"])
    if flags["images"] is None:
        raise UserError("--images is missing; name image files, as in --images='photos/*.jpg'.")


def _run(command: Command) -> int:
    """Returns 1 if an image could not be classified."""
    from basisnet_jax.host import terminal
    from basisnet_jax.host.command_line import on_one_line
    from basisnet_jax.inference.jax_classifier import TwoStageClassifier
    from basisnet_jax.serving.image_files import predict_files, table

    classifier = TwoStageClassifier.from_folder(command.workdir, command.flags["threshold"], command.config)
    with terminal.Progress() as progress:
        progress.stage("classifying")
        rows, bad = predict_files(classifier, command.flags["images"], command.flags["top_k"], progress.reached)
    print(table(rows, command.flags["format"]))
    for sentence in bad:
        print(f"error: {on_one_line(sentence)}", file=sys.stderr)
    return int(bool(bad))


MODE = Mode(
    help="classify image files in two stages",
    examples=(
        "--model=glyphs --images='photos/*.png'",
        "--workdir=runs/digits --images='photos/*.jpg'",
        "--workdir=runs/digits/export --images=photos",
    ),
    run=_run,
    flags=(
        IMAGES,
        Flag("format", "How the answers are printed.", "table", ("table", "csv", "json")),
        MODEL,
        THRESHOLD,
        Flag("top_k", "How many classes are printed for each image, the most probable first.", 1, int),
    ),
    check=_check,
    takes_export=True,
)
