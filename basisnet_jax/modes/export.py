"""--mode=export: writes files for phones and servers."""

import os
from collections.abc import Mapping
from typing import Any

from basisnet_jax.errors import UserError
from basisnet_jax.modes.mode import MODEL, THRESHOLD, Command, Flag, Mode


def _check(flags: Mapping[str, Any]) -> None:
    from basisnet_jax.serving.exit_rule import threshold_rule

    if flags["model"] and not flags["specialize"]:
        raise UserError(f"--model={flags['model']} is exported already; give --specialize, or the --workdir of a run.")
    if flags["threshold"] is None:
        return
    threshold_rule(flags["threshold"])
    if flags["specialize"]:
        raise UserError(
            "--threshold is not for --specialize, whose network has no preview; leave one of the two flags out."
        )


def _run(command: Command) -> int:
    from basisnet_jax.export import freeze, package

    if command.flags["specialize"] is None:
        print(package.export_run(command.config, command.workdir, command.flags["threshold"]))
    else:
        model = command.flags["model"]
        out = os.path.join("runs", model, "specialized") if model else None
        print(freeze.specialize_run(command.config, command.workdir, command.flags["specialize"], out))
    return 0


MODE = Mode(
    help="write files for phones and servers",
    examples=(
        "--workdir=runs/digits",
        "--workdir=runs/digits --specialize='kitchen/*.jpg'",
        "--model=glyphs --specialize='hangul/*.png'",
    ),
    run=_run,
    flags=(
        MODEL,
        THRESHOLD,
        Flag(
            "specialize",
            "Images of one place to freeze a static network for: a folder, names as in 'kitchen/*.jpg', or a feature "
            "of the data set's evaluation images, as in script=hangul.",
        ),
    ),
    check=_check,
    takes_export=True,
)
