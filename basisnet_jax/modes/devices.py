"""--mode=devices: says what JAX can use here, and what is wrong with the installation."""

import sys

from basisnet_jax.modes.mode import Command, Mode

PROBLEMS = 1  # exit code if there are problems


def _run(command: Command) -> int:
    from basisnet_jax.host import devices

    lines, problems = devices.report(command.config.data.dir)
    print(*lines, sep="\n")
    print(*(f"problem: {sentence}" for sentence in problems), sep="\n", end="\n" if problems else "", file=sys.stderr)
    return PROBLEMS if problems else 0


MODE = Mode(
    help="say what JAX can use on this machine, and what is wrong with the installation",
    examples=("",),
    run=_run,
    needs_config=False,
)
