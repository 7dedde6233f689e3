"""Config files: a Python file as in `configs/`, or the `config.json` of a run; each mistake in one is one sentence."""

import difflib
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import re
import sysconfig
import traceback
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import flags

import basisnet_jax
from basisnet_jax import config as config_lib
from basisnet_jax.errors import UserError
from basisnet_jax.host import files
from basisnet_jax.models.architectures import ARCHITECTURES

_OF_RUNS = ("config.json", "manifest.json")  # a run's config, and what an export has in its place
_LIBRARIES = (
    *{sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")},
    os.path.dirname(basisnet_jax.__file__),
)
_LONGEST = 200  # characters of a sentence that somebody else's code wrote


class Parser(flags.ArgumentParser):
    """A flag whose value is the config of the file that is named."""

    def parse(self, argument: str) -> ml_collections.ConfigDict:
        """Returns `load(argument)`."""
        return load(argument)

    def flag_type(self) -> str:
        """Absl's interface."""
        return "config file"


def of_workdir(workdir: str, *, or_export: bool) -> str:
    """Returns the path of the file that has the config of a run, or of an export.

    Raises:
      UserError: the folder has none.
    """
    folder = files.absolute(workdir)
    for name in _OF_RUNS if or_export else _OF_RUNS[:1]:
        if (folder / name).exists():
            return os.fspath(folder / name)
    raise UserError(
        f"--workdir={workdir} has no config.json, so there is no run in it; start one with --config=configs/digits.py, "
        "or give the --workdir of a run."
    )


def default_workdir(argument: str) -> str:
    """Returns the workdir of a config file's run: the folder of a run's config.json, runs/NAME of any other file."""
    path = argument.split(":")[0] if not argument.endswith(_OF_RUNS) else argument
    if os.path.basename(path) in _OF_RUNS:
        return os.path.dirname(path) or "."
    return os.path.join("runs", pathlib.PurePath(path).stem)


def load(argument: str) -> ml_collections.ConfigDict:
    """Returns the config of a file, locked.

    Args:
      argument: path of a Python file with a function `get_config`, which gets what follows a colon; or of a JSON file
        that a run or an export wrote, of which nothing is executed.

    Raises:
      UserError: the file cannot be read, or has no config; the sentence names the file, and its line if there is one.
    """
    if argument.endswith(".json"):
        return _from_json(argument)
    path, *arguments = argument.split(":", 1)
    if not path:
        raise UserError("--config is empty; give a file of configs/, as in --config=configs/digits.py.")
    if os.path.isdir(path):
        raise UserError(_folder(path))
    if not os.path.exists(path):
        raise UserError(f"there is no config file {path!r}; {_nearest_file(path)}")
    try:
        module = _run_file(path)
        if not callable(getattr(module, "get_config", None)):
            raise UserError("there is no function get_config() in it, as the files of configs/ have.")
        config = module.get_config(*arguments)
    except (Exception, SystemExit) as error:  # a config file may do anything
        raise UserError(_mistake(path, error)) from None
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"{path}: get_config() returned {_short(repr(config))}; it must return a config that starts from "
            "basisnet_jax.config.default()."
        )
    return config.lock()


def _folder(path: str) -> str:
    if os.path.exists(os.path.join(path, _OF_RUNS[0])):
        return f"--config={path} is a folder with a run; give --workdir={path} in the place of --config."
    inside = sorted(pathlib.Path(path).glob("*.py"))
    example = f", as in --config={inside[0]}" if inside else ""
    return f"--config={path} is a folder; give a file{example}."


def _nearest_file(path: str) -> str:
    there = [str(file) for file in pathlib.Path(os.path.dirname(path) or ".").glob("*.py")]
    nearest = difflib.get_close_matches(os.path.normpath(path), there, n=1)
    return f"did you mean {nearest[0]}?" if nearest else "those that come with the project are in configs/."


def _run_file(path: str) -> Any:
    """Returns the file as a module of its own, whatever its name ends with."""
    loader = importlib.machinery.SourceFileLoader("basisnet_jax_config", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _mistake(path: str, error: BaseException) -> str:
    """Returns the sentence for what a config file raised: the file, its line, the mistake, and the nearest field."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{_shown(error.filename or path)}, line {error.lineno}: {error.msg}."
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(frame.filename)]
    where, line = (
        (f"{_shown(frames[-1].filename)}, line {frames[-1].lineno}", frames[-1].line) if frames else (path, "")
    )
    if isinstance(error, OSError) and not frames:
        return f"cannot read {path} ({error.strerror})."
    if isinstance(error, UserError):
        return f"{where}: {error}"
    return f"{where}: {_of_field(error, line or '') or _short(f'{type(error).__name__}: {_first_line(error)}') + '.'}"


def _of_field(error: BaseException, line: str) -> str | None:
    """Returns what is wrong with a field, if ml_collections says so in its own way; None otherwise."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    text = str(error.args[0]) if error.args else ""
    innermost = traceback.extract_tb(error.__traceback__)[-1:]
    if isinstance(error, AttributeError | KeyError) and "ml_collections" in "".join(x.filename for x in innermost):
        found = re.match(r"""(?:Key )?["'](\w+)["']""", text)
        if found:
            written = re.search(rf"config\.((?:\w+\.)*{found[1]})\b", line)  # with the group that it is in
            return config_lib.nearest_field(written[1] if written else found[1])
    found = re.match(
        r"Could not override field '(\w+)' \(reference\)\. (.*) is of original type <class '(\w+)'>", text, re.S
    )
    wanted = re.search(r"type <class '(\w+)'>$", text)
    if isinstance(error, TypeError) and found and wanted:
        return f"the field {found[1]} must be of type {wanted[1]}; {_short(found[2])!r} is of type {found[3]}."
    return None


def _from_json(path: str) -> ml_collections.ConfigDict:
    """Returns the config of a config.json, or that in the manifest.json of an export."""
    try:
        saved = json.loads(files.absolute(path).read_text())
    except FileNotFoundError:
        raise UserError(f"there is no config file {path!r}; a run has its own in its --workdir.") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}).") from None
    except ValueError as error:  # no UTF-8, or no JSON
        raise UserError(f"{path} is not JSON ({_first_line(error)}).") from None
    saved = saved.get("config") if isinstance(saved, dict) and os.path.basename(path) == "manifest.json" else saved
    if not isinstance(saved, dict):
        raise UserError(f"{path} holds no config; give the config.json of a run.")
    known = config_lib.DECLARED
    for name in config_lib.flatten(saved):
        if name not in known:
            raise UserError(f"{path}: {config_lib.nearest_field(name)}")
    try:
        config = config_lib.with_defaults(saved)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {_of_field(error, '') or _short(_first_line(error))}") from None
    for stage in ("specialist", "preview"):
        if config.model[stage].backbone not in ARCHITECTURES:
            raise UserError(
                f"{path}: config.model.{stage}.backbone = {config.model[stage].backbone!r} is not one of "
                "models/architectures.py; if a config file of yours adds it, give that file with --config."
            )
    return config


def _is_library(filename: str) -> bool:
    return filename.startswith(("<", *_LIBRARIES))


def _shown(filename: str) -> str:
    """Returns the path relative to where the program runs, if it is below that."""
    relative = os.path.relpath(filename)
    return filename if relative.startswith("..") else relative


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def override_mistake(error: Exception, argv: Sequence[str]) -> str:
    """Returns the sentence for a --config. flag that raised: its nearest field, or what was wrong with its value."""
    known = config_lib.DECLARED
    for argument in argv:
        name = argument.lstrip("-").split("=")[0].removeprefix("no")
        if name.startswith("config.") and name.removeprefix("config.") not in known:
            return config_lib.nearest_field(name.removeprefix("config."))
    return f"a --config. flag cannot be read: {_first_line(error)}"
