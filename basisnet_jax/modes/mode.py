"""What a mode of the command line is: its help, its flags, and what it runs."""

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

if TYPE_CHECKING:
    import ml_collections


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of one or several modes.

    Attributes:
      name: without dashes.
      help: one or two sentences.
      default: None where there is no default value.
      kind: str, int, float or bool; or a tuple of the values to choose from.
    """

    name: str
    help: str
    default: Any = None
    kind: type | tuple[str, ...] = str

    def define(self) -> None:
        """Makes absl know the flag."""
        if isinstance(self.kind, tuple):
            flags.DEFINE_enum(self.name, self.default, self.kind, self.help)
            return
        defines: dict[type, Callable[..., Any]] = {
            str: flags.DEFINE_string,
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
            bool: flags.DEFINE_bool,
        }
        defines[self.kind](self.name, self.default, self.help)


@dataclasses.dataclass(frozen=True)
class Command:
    """What a command line asks for.

    Attributes:
      config: of the run.
      workdir: of the run.
      flags: {name: value} of the mode's flags.
    """

    config: "ml_collections.ConfigDict"
    workdir: str
    flags: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Mode:
    """A mode.

    Attributes:
      help: what the mode does, in a few words.
      examples: command lines after `python -m basisnet_jax.main`.
      run: does it, and returns the exit code. It imports what it needs: the other modes need not wait for that.
      flags: the mode's own.
      check: raises UserError if the flags' values do not fit; called before anything takes time.
      takes_export: whether --workdir may be an export.
      many_processes: whether several processes can do it together.
      keeps_programs: whether compiled programs are kept on disk for the next command.
    """

    help: str
    examples: tuple[str, ...]
    run: Callable[[Command], int]
    flags: tuple[Flag, ...] = ()
    check: Callable[[Mapping[str, Any]], None] = lambda flags: None
    takes_export: bool = False
    many_processes: bool = False
    keeps_programs: bool = True


def next_command(mode: str, workdir: str, *arguments: str) -> str:
    """Returns the line that proposes another mode on a run."""
    words = " ".join([f"--mode={mode}", f"--workdir={shlex.quote(workdir)}", *arguments])
    return f"next: python -m basisnet_jax.main {words}"


PROCESSES = (
    Flag("coordinator", "host:port of process 0, if the environment does not tell."),
    Flag("num_processes", "Processes of the run, if the environment does not tell.", kind=int),
    Flag("process_id", "This process's number, from 0, if the environment does not tell.", kind=int),
    Flag("connect_seconds", "How long the processes wait for each other to start.", 300, int),
)
THRESHOLD = Flag(
    "threshold",
    "Largest softmax probability at which the preview answers alone, from 0 to 1. Default: the rule that "
    "--mode=evaluate chose.",
    kind=float,
)


def read_flags(argv: Sequence[str], *names: str) -> dict[str, str | None]:
    """Returns the values of some flags as the command line, or a flag file that it names, gives them.

    Args:
      argv: the command line, the program first. Other flags in it are skipped.
      names: of flags with a value.

    Returns:
      {name: value}; None for a flag that is not given, and for all if the command line cannot be read: whatever parses
      it in full says why.
    """
    values = flags.FlagValues()
    for name in names:
        flags.DEFINE_string(name, None, "", flag_values=values)
    values.set_gnu_getopt(True)  # words between flags are values of the flags that are skipped
    try:
        values(list(argv), known_only=True)
    except flags.Error:
        return dict.fromkeys(names)
    return {name: values[name].value for name in names}
