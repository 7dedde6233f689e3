"""--mode=export: writes files for phones and servers."""

from collections.abc import Mapping
from typing import Any

from basisnet_jax.errors import UserError
from basisnet_jax.modes.mode import THRESHOLD, Command, Flag, Mode


def _check(flags: Mapping[str, Any]) -> None:
    from basisnet_jax.serving.exit_rule import threshold_rule

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
        print(freeze.specialize_run(command.config, command.workdir, command.flags["specialize"]))
    return 0


MODE = Mode(
    help="write files for phones and servers",
    examples=("--workdir=runs/digits", "--workdir=runs/digits --specialize='kitchen/*.jpg'"),
    run=_run,
    flags=(
        THRESHOLD,
        Flag(
            "specialize",
            "Images of one place to freeze a static network for: a folder, or names as in 'kitchen/*.jpg'.",
        ),
    ),
    check=_check,
)
