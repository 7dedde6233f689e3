"""Trains, evaluates, uses and exports two-stage image classifiers (BasisNet).

basisnet --config=digits
python -m basisnet_jax.main --config=configs/digits.py
python -m basisnet_jax.main --help
"""

# Data workers import this module again, so importing it starts nothing and imports nothing slow.

import contextlib
import faulthandler
import sys
from collections.abc import Sequence

from basisnet_jax.errors import UserError
from basisnet_jax.host.command_line import exit_quietly_on_broken_pipe

INTERRUPTED = 130  # exit code after a second Ctrl-C, as shells define it


def run() -> None:
    """Runs the command line. The console command `basisnet` is this function."""
    try:
        from basisnet_jax.host import installed, malloc, noise
        from basisnet_jax.modes.mode import mode_first, read_flags

        sys.argv = mode_first(sys.argv)
        training = read_flags(sys.argv, "mode")["mode"] in (None, "train", "finetune")
        malloc.restart_with_malloc_settings(arenas=None if training else 1)  # starts the program again
        noise.filter_native_stderr()
        refused = installed.mismatches()
        for name in ("Python", "jax"):
            if name in refused:
                print(f"error: {refused[name]}", file=sys.stderr)
                sys.exit(2)

        from absl import app

        from basisnet_jax.modes import parsing
    except ModuleNotFoundError as error:  # basisnet_jax[runtime] installs without these packages
        print(f"error: {error.name} is not installed; run pip install 'basisnet_jax[train]'.", file=sys.stderr)
        sys.exit(2)
    with exit_quietly_on_broken_pipe():
        app.run(main, flags_parser=parsing.parse_flags)


def main(argv: Sequence[str]) -> int:
    """Runs the mode that the flags name, and returns the exit code."""
    del argv
    from absl import flags

    from basisnet_jax.host import noise, terminal
    from basisnet_jax.modes import MODES, parsing
    from basisnet_jax.modes.mode import PROCESSES

    with terminal.Progress() as progress:
        progress.stage("starting", logged=False)  # these imports take seconds
        from basisnet_jax.host import compilation_cache, distributed

    if flags.FLAGS["verbosity"].present:
        noise.show_everything()
    else:
        noise.log_own_lines(terminal.log)
    # absl sends Python's last words past the filter, which makes one sentence of them where a process was lost. absl
    # has all threads told, too: reading the frames of one that still runs can end in a second fault.
    with contextlib.suppress(ValueError):  # stderr is closed
        faulthandler.enable(file=2, all_threads=False)
    # Threads that decode small images hold Python's lock, and each step waits for the lock: by default 5 ms every time.
    sys.setswitchinterval(0.0005)
    name, command = parsing.command()
    mode = MODES[name]
    if mode.keeps_programs:
        compilation_cache.use_compilation_cache()
    with distributed.exit_when_a_peer_dies():
        try:
            if mode.many_processes:
                distributed.initialize(**{flag.name: command.flags[flag.name] for flag in PROCESSES})
            return mode.run(command)
        except UserError as error:
            parsing.fail(error)
        except KeyboardInterrupt:
            print("error: stopped at once; the same command resumes from the newest checkpoint.", file=sys.stderr)
            sys.exit(INTERRUPTED)


if __name__ == "__main__":
    run()
