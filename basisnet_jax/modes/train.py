"""--mode=train: trains, evaluates and saves."""

import os

from basisnet_jax.modes.mode import PROCESSES, Command, Flag, Mode, next_command


def _run(command: Command) -> int:
    from basisnet_jax.host import distributed
    from basisnet_jax.loop.train import train

    workdir = command.workdir
    results = train(command.config, workdir)
    if results is None:
        distributed.say(f"stopped and saved; the same command resumes from there (workdir {workdir}).")
        return command.flags["stopped_code"]
    distributed.say(f"{os.path.basename(os.path.normpath(workdir))}: {results.summary()}")
    distributed.say(f"{workdir}: results.json, curves.png, config.json, checkpoints, events")
    distributed.say(next_command("evaluate", workdir))
    return 0


MODE = Mode(
    help="train, evaluate and save; resumes a run that was stopped",
    examples=(
        "--config=configs/digits.py",
        "--config=configs/digits.py --config.batch_size=64 --workdir=runs/wide",
        "--workdir=runs/wide",
    ),
    run=_run,
    flags=(
        Flag(
            "stopped_code",
            "Exit code after a signal, so that a script can tell a stopped run from a finished one (0).",
            0,
            int,
        ),
        *PROCESSES,
    ),
    many_processes=True,
)
