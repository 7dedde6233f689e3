"""Parses the command line: its flags, its help, and a sentence for each mistake."""

import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_flags

from basisnet_jax.config import default
from basisnet_jax.errors import UserError
from basisnet_jax.host.command_line import on_one_line
from basisnet_jax.modes import MODES, config_files
from basisnet_jax.modes.mode import PROGRAM, Command, read_flags
from basisnet_jax.serving import zoo

_TITLE = "Trains, evaluates, uses and exports two-stage image classifiers (BasisNet)."
_NO_CONFIG = (
    "--config is missing; give a file of configs/, as in --config=configs/digits.py, or the --workdir of a run, which "
    "has its own config."
)
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "An included config by its name, a file, or the config.json of a run; any field of it is a flag too: "
    "--config.batch_size=64. Default: the config of the run in --workdir.",
)
flags.FLAGS["config"].parser = config_files.Parser()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; for evaluate and predict also of an export. Default: runs/<the config's name>."
)
_MODE = flags.DEFINE_enum("mode", "train", list(MODES), "What to do.")
_VERSION = flags.DEFINE_bool("version", False, "Print the versions of this package, JAX and Python.")
COMMON = ("mode", "config", "workdir", "verbosity", "version")
_HELP = ("--help", "-help", "-h", "--helpfull", "--helpshort")
for _flag in {flag.name: flag for mode in MODES.values() for flag in mode.flags}.values():
    _flag.define()


def help_text(mode: str | None) -> str:
    """Returns the text that --help prints for one mode, or for all modes."""
    shown = MODES if mode is None else {mode: MODES[mode]}
    lines = [_TITLE, ""] if mode is None else []
    for name, what in shown.items():
        lines.append(f"--mode={name}: {what.help}")
        said = "" if name == "train" else f"--mode={name} "
        lines += [f"    {PROGRAM} {said}{example}" for example in what.examples]
    own = [flag.name for flag in MODES[mode].flags] if mode else []
    lines += ["", "flags:"]
    for name in [*own, *COMMON]:
        lines += textwrap.wrap(
            f"--{name}: {flags.FLAGS[name].help}", 110, initial_indent="  ", subsequent_indent="      "
        )
    more = f"A mode's own flags: {PROGRAM} --mode=export --help. " if mode is None else ""
    return "\n".join([*lines, "", f"{more}Every field of a config is a flag too: docs/reference/settings.md."])


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line; ends the program with one sentence if there is a mistake."""
    try:
        if any(argument in _HELP for argument in argv[1:]):
            mode = read_flags(argv, "mode")["mode"]
            print(help_text(mode if mode in MODES else None))
            sys.exit(0)
        argv = _with_config(argv)
        positional = flags.FLAGS(argv)
        if _VERSION.value:
            from basisnet_jax.host.installed import versions_line

            print(versions_line())
            sys.exit(0)
        if len(positional) > 1:
            raise UserError(
                f"unknown argument {positional[1]!r}; flags start with --, as in --config=configs/digits.py."
            )
        _refuse_flags_of_other_modes()
        MODES[_MODE.value].check(_values())
        if CONFIG.value is None and MODES[_MODE.value].needs_config:
            raise UserError(_NO_CONFIG)
        return positional
    except UserError as error:
        fail(error)
    except flags.Error as error:
        fail(str(error).strip().splitlines()[0])
    except (AttributeError, KeyError, TypeError, ValueError, SyntaxError, ImportError) as error:
        fail(config_files.override_mistake(error, argv))


def command() -> tuple[str, Command]:
    """Returns the name of the mode, and the command, from the parsed flags."""
    if CONFIG.value is None:
        return _MODE.value, Command(default(), "", _values())
    filename = config_flags.get_config_filename(flags.FLAGS["config"])
    return _MODE.value, Command(CONFIG.value, _WORKDIR.value or config_files.default_workdir(filename), _values())


def _values() -> dict[str, Any]:
    """Returns the values of the mode's own flags."""
    return {flag.name: flags.FLAGS[flag.name].value for flag in MODES[_MODE.value].flags}


def _refuse_flags_of_other_modes() -> None:
    own = _values()
    for flag in (flag for mode in MODES.values() for flag in mode.flags):
        if flags.FLAGS[flag.name].present and flag.name not in own:
            modes = " or ".join(f"--mode={name}" for name, mode in MODES.items() if flag in mode.flags)
            raise UserError(f"--{flag.name} is not for --mode={_MODE.value}; use {modes}, or leave it out.")


def _with_config(argv: Sequence[str]) -> Sequence[str]:
    """Returns the command line, with the config of --model, of the mode itself, or of the run in --workdir.

    Raises:
      UserError: there is no such model, no run in --workdir, or the mode cannot make its config.
    """
    given = read_flags(argv, "config", "workdir", "mode", "model")
    if (model := given["model"]) is not None:
        folder = zoo.folder_of(model)
        if given["config"] is not None or given["workdir"] is not None:
            raise UserError(f"--model={model} has its own config and files; leave out --config and --workdir.")
        return _before_flags(argv, f"--config={config_files.of_workdir(folder, or_export=True)}")
    mode = MODES.get(given["mode"] or "train")
    if mode and (defaults := mode.defaults(argv)):
        return _before_flags(argv, *defaults)
    if given["config"] is not None:
        return argv
    if not given["workdir"]:
        if any(argument.lstrip("-").startswith("config.") for argument in argv[1:]):
            raise UserError(_NO_CONFIG)  # config_flags would report an unknown flag instead
        return argv
    path = config_files.of_workdir(given["workdir"], or_export=mode is not None and mode.takes_export)
    return _before_flags(argv, f"--config={path}")


def _before_flags(argv: Sequence[str], *own: str) -> Sequence[str]:
    """Returns the command line with flags before all other flags, which may override them."""
    sys.argv = [argv[0], *own, *argv[1:]]  # config_flags looks for overrides here
    return sys.argv


def fail(message: object) -> NoReturn:
    """Prints a user's mistake and ends the program with exit code 2."""
    print(f"error: {on_one_line(str(message))}", file=sys.stderr)
    sys.exit(2)
