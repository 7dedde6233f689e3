"""The types of a mode of the command line: its help, its flags, and the function that it runs."""

import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

if TYPE_CHECKING:
    import ml_collections


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of one or several modes.

    Attributes:
      name: the flag's name without dashes.
      help: one or two sentences.
      default: the default value; None if there is none.
      kind: str, int, float or bool; or a tuple of the allowed values.
    """

    name: str
    help: str
    default: Any = None
    kind: type | tuple[str, ...] = str

    def define(self) -> None:
        """Registers the flag with absl."""
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
    """A parsed command line.

    Attributes:
      config: the run's config.
      workdir: the run's folder.
      flags: {name: value} of the mode's flags.
    """

    config: "ml_collections.ConfigDict"
    workdir: str
    flags: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Mode:
    """A mode of the command line.

    Attributes:
      help: what the mode does, in a few words.
      examples: command lines after `PROGRAM`.
      run: executes the mode, and returns the exit code. It imports its own modules, so other modes start without them.
      flags: the mode's own flags.
      check: raises UserError if the flags' values do not fit; called before slow work starts.
      takes_export: whether --workdir may be an export.
      many_processes: whether several processes can run the mode together.
      keeps_programs: whether compiled programs are cached on disk for the next command.
      needs_config: whether a config or a workdir must be given; otherwise the default config takes their place.
      defaults: makes flags from the command line, which override them: a mode's own --config and --workdir.
    """

    help: str
    examples: tuple[str, ...]
    run: Callable[[Command], int]
    flags: tuple[Flag, ...] = ()
    check: Callable[[Mapping[str, Any]], None] = lambda flags: None
    takes_export: bool = False
    many_processes: bool = False
    keeps_programs: bool = True
    needs_config: bool = True
    defaults: Callable[[Sequence[str]], list[str]] = lambda argv: []


# The command as the user types it: the console command of an installation, or the module.
PROGRAM = "basisnet" if pathlib.PurePath(sys.argv[0]).name == "basisnet" else "python -m basisnet_jax.main"


def next_command(mode: str, workdir: str, *arguments: str) -> str:
    """Returns a line that proposes the next mode to run on a workdir."""
    words = " ".join([f"--mode={mode}", f"--workdir={shlex.quote(workdir)}", *arguments])
    return f"next: {PROGRAM} {words}"


PROCESSES = (
    Flag("coordinator", "host:port of process 0, if the environment does not set it."),
    Flag("num_processes", "Number of processes of the run, if the environment does not set it.", kind=int),
    Flag("process_id", "This process's number, from 0, if the environment does not set it.", kind=int),
    Flag("connect_seconds", "How long the processes wait for each other to start.", 300, int),
)
MODEL = Flag(
    "model", "A model that comes along, by its name (--mode=models lists them), in place of a run in --workdir."
)
IMAGES = Flag(
    "images",
    "predict: a folder of images, or names as in 'photos/*.jpg'; ** matches any folders. finetune: a folder that has a "
    "folder of photographs for each class.",
)
THRESHOLD = Flag(
    "threshold",
    "The preview answers alone if its largest softmax probability is at least this, from 0 to 1. Default: the rule "
    "that --mode=evaluate chose.",
    kind=float,
)


def mode_first(argv: Sequence[str]) -> list[str]:
    """Returns the command line with a first word such as 'predict' written as the flag --mode=predict."""
    if len(argv) > 1 and argv[1].isidentifier():
        return [argv[0], f"--mode={argv[1]}", *argv[2:]]
    return list(argv)


def read_flags(argv: Sequence[str], *names: str) -> dict[str, str | None]:
    """Returns the values of some flags, from the command line or a flag file that it names.

    Args:
      argv: the command line, beginning with the program. Other flags are skipped.
      names: names of flags that take a value.

    Returns:
      {name: value}; None for a flag that is not given, and for all flags if the command line cannot be parsed: the
      full parse reports the mistake.
    """
    values = flags.FlagValues()
    for name in names:
        flags.DEFINE_string(name, None, "", flag_values=values)
    values.set_gnu_getopt(True)  # words between flags may be values of skipped flags
    try:
        values(list(argv), known_only=True)
    except flags.Error:
        return dict.fromkeys(names)
    return {name: values[name].value for name in names}
