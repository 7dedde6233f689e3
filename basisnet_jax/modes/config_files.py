"""Reads configs: a Python file as in `configs/`, or a run's `config.json`; reports a mistake in one sentence."""

import ast
import difflib
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import re
import sys
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

_PACKAGE = pathlib.Path(basisnet_jax.__file__).resolve().parent
# The configs that are included: in a checkout beside the package, in an installation inside it.
CONFIGS = next(path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.exists())
_OF_RUNS = ("config.json", "manifest.json")  # the file with the config in a run, and in an export
_LIBRARIES = (
    *{sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")},
    os.path.dirname(basisnet_jax.__file__),
)
_LONGEST = 200  # characters shown of a message that other code wrote


class Parser(flags.ArgumentParser):
    """A parser for a flag that names a config file; the flag's value is the config."""

    def parse(self, argument: str) -> ml_collections.ConfigDict:
        """Returns `load(argument)`."""
        return load(argument)

    def flag_type(self) -> str:
        """Returns the name of the flag's type, as absl's interface asks."""
        return "config file"


def of_workdir(workdir: str, *, or_export: bool) -> str:
    """Returns the path of the file that holds the config of a run, or of an export.

    Raises:
      UserError: the folder has no such file.
    """
    folder = files.absolute(workdir)
    config, manifest = (folder / name for name in _OF_RUNS)
    if manifest.exists():  # an export, which may have a config.json too: of its weights
        if or_export:
            return os.fspath(manifest)
        raise UserError(f"--workdir={workdir} is an export; give the --workdir of a run.")
    if config.exists():
        return os.fspath(config)
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


def included() -> dict[str, str]:
    """Returns {name: what it trains} for the included configs, such as 'digits' or 'compare/recipe'."""
    names = {}
    for path in sorted(CONFIGS.rglob("*.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "get_config" for node in tree.body):
            name = path.relative_to(CONFIGS).with_suffix("").as_posix()
            names[name] = (ast.get_docstring(tree) or "").split("\n")[0]
    return names


def path_of(name: str) -> str:
    """Returns the path of the file that --config names: an included config by its name, or a path."""
    path = CONFIGS / f"{name}.py"
    return os.fspath(path) if not os.path.exists(name) and path.exists() else name


def load(argument: str) -> ml_collections.ConfigDict:
    """Returns the config of a file, locked.

    Args:
      argument: path of a Python file with a function `get_config`, whose argument is the text after a colon; or of a
        JSON file that a run or an export wrote, which executes no code.

    Raises:
      UserError: the file cannot be read, or has no config; the message names the file, and the line if there is one.
    """
    if argument.endswith(".json"):
        return _from_json(argument)
    path, *arguments = argument.split(":", 1)
    path = path_of(path)
    if not path:
        raise UserError("--config is empty; give a file or the name of an included config, as in --config=digits.")
    if os.path.isdir(path):
        raise UserError(_folder(path))
    if not os.path.exists(path):
        raise UserError(f"there is no config file {path!r}; {_nearest_file(path)}")
    try:
        _let_configs_import_each_other(path)
        module = _run_file(path)
        if not callable(getattr(module, "get_config", None)):
            raise UserError("it has no function get_config(), as the files of configs/ have.")
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
        return f"--config={path} is a folder with a run; give --workdir={path} instead of --config."
    inside = sorted(pathlib.Path(path).glob("*.py"))
    example = f", as in --config={inside[0]}" if inside else ""
    return f"--config={path} is a folder; give a file{example}."


def _nearest_file(path: str) -> str:
    there = [str(file) for file in pathlib.Path(os.path.dirname(path) or ".").glob("*.py")] + list(included())
    nearest = difflib.get_close_matches(os.path.normpath(path), there, n=1)
    return f"did you mean {nearest[0]}?" if nearest else "--mode=configs lists the included ones."


def _let_configs_import_each_other(path: str) -> None:
    """Makes `from configs import ...` mean the included configs, unless the user has a package of that name."""
    for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
        del sys.modules[name]  # of a config that was read before
    if os.getcwd() not in sys.path:  # the console command does not start with it, as `python -m` does
        sys.path.append(os.getcwd())
    if CONFIGS in pathlib.Path(path).resolve().parents or importlib.util.find_spec("configs") is None:
        included = importlib.machinery.ModuleSpec("configs", None, is_package=True)
        included.submodule_search_locations = [os.fspath(CONFIGS)]
        sys.modules["configs"] = importlib.util.module_from_spec(included)


def _run_file(path: str) -> Any:
    """Executes the file and returns it as a module, whatever the extension of its name."""
    loader = importlib.machinery.SourceFileLoader("basisnet_jax_config", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _mistake(path: str, error: BaseException) -> str:
    """Returns a sentence on an error in a config file: the file, the line, the mistake, and the nearest field."""
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
    """Returns what is wrong with a field, read from the error of ml_collections; None for any other error."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    text = str(error.args[0]) if error.args else ""
    innermost = traceback.extract_tb(error.__traceback__)[-1:]
    if isinstance(error, AttributeError | KeyError) and "ml_collections" in "".join(x.filename for x in innermost):
        key = re.match(r"""(?:Key )?["'](\w+)["']""", text)
        if key:
            written = re.search(rf"config\.((?:\w+\.)*{key[1]})\b", line)  # with the field's group
            return config_lib.nearest_field(written[1] if written else key[1])
    override = re.match(
        r"Could not override field '(\w+)' \(reference\)\. (.*) is of original type <class '(\w+)'>", text, re.S
    )
    wanted = re.search(r"type <class '(\w+)'>$", text)
    if isinstance(error, TypeError) and override and wanted:
        return f"the field {override[1]} must be of type {wanted[1]}; {_short(override[2])!r} is of type {override[3]}."
    return None


def _from_json(path: str) -> ml_collections.ConfigDict:
    """Returns the config in a run's config.json, or in an export's manifest.json."""
    try:
        saved = json.loads(files.absolute(path).read_text())
    except FileNotFoundError:
        raise UserError(f"there is no config file {path!r}; a run has its own in its --workdir.") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
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
    """Returns the path, relative to the current folder if the file lies below it."""
    relative = os.path.relpath(filename)
    return filename if relative.startswith("..") else relative


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def override_mistake(error: Exception, argv: Sequence[str]) -> str:
    """Returns a sentence on a --config. flag that raised: the nearest field, or what is wrong with the value."""
    known = config_lib.DECLARED
    for argument in argv:
        name = argument.lstrip("-").split("=")[0].removeprefix("no")
        if name.startswith("config.") and name.removeprefix("config.") not in known:
            return config_lib.nearest_field(name.removeprefix("config."))
    return f"a --config. flag cannot be read: {_first_line(error)}"
