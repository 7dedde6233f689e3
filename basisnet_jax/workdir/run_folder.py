"""Checks of a run's folder: whether it holds a run or an export, and whether a config is the run's own."""

import os
import pathlib
from collections.abc import Collection
from typing import Any

import ml_collections
from etils import epath

from basisnet_jax.config import MAY_CHANGE_ON_RESUME, Config, flatten, validate, with_defaults
from basisnet_jax.errors import UserError
from basisnet_jax.host import files
from basisnet_jax.host.command_line import first_line
from basisnet_jax.host.records import read_object
from basisnet_jax.serving.export import Export
from basisnet_jax.settings.declare import as_json
from basisnet_jax.settings.groups import Settings


def check_same_run(
    config: Config,
    saved: dict[str, Any],
    workdir: str,
    free: Collection[str] = MAY_CHANGE_ON_RESUME,
    *,
    way_out: str = "leave these settings as they were, or give another --workdir",
) -> None:
    """Raises UserError, which ends with `way_out`, if a workdir's run was started with another config.

    Fields that are `free` may differ. The path of `distill.cache` may differ, too, because its logits are checked
    against the teacher; but a run with a cache must keep one, and a run without must not get one.
    """
    wanted = flatten(as_json(validate(config)))
    had = {**flatten(as_json(Settings())), **flatten(saved)}  # the defaults: an older version's run lacks fields
    if bool(wanted.get("distill.cache")) == bool(had.get("distill.cache")):
        wanted.pop("distill.cache", None)
        had.pop("distill.cache", None)
    differing = [
        f"{field} was {had.get(field)!r} and is {wanted.get(field)!r}"
        for field in sorted(wanted.keys() | had.keys())
        if field not in free and wanted.get(field) != had.get(field)
    ]
    if differing:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(differing[:3])}"
            f"{'; ...' if len(differing) > 3 else ''}); {way_out}."
        )


def open_run(workdir: str, config: Config | None = None, *, or_export: bool = False) -> tuple[epath.Path, Settings]:
    """Returns the folder of a trained run, and the settings to use the run with.

    Args:
      workdir: the folder.
      config: the run's config, which may differ in settings that only evaluation reads; None is the run's own.
      or_export: accept a folder that --mode=export wrote, too.

    Raises:
      UserError: there is no run, or the run has another config.
    """
    folder = files.absolute(workdir)
    of_export = is_export(workdir)
    if of_export and not or_export:
        raise UserError(f"{folder} is an export; give the --workdir of a run.")
    if of_export:
        saved = Export.open(os.fspath(folder)).manifest.config
    elif (folder / "config.json").exists():
        saved = _saved_config(folder)
    else:
        raise UserError(
            f"{folder} has no config.json, so it is not a run; train there first, or give the --workdir of a run."
        )
    if config is None:
        try:
            config = with_defaults(saved)
        except (TypeError, ValueError, AttributeError) as error:  # a value of another type
            raise UserError(
                f"the config of {folder} cannot be read ({first_line(error)}); give another --workdir."
            ) from None
        if of_export and (folder.parent / "config.json").exists():
            _restore_folders(config, _saved_config(folder.parent))
    config = validate(config)
    compared = with_defaults(portable(as_json(config))) if of_export else config
    check_same_run(compared, saved, workdir, free=(*MAY_CHANGE_ON_RESUME, "data.eval_split"))
    return folder, config


def _saved_config(folder: epath.Path) -> dict[str, Any]:
    try:
        return read_object(folder / "config.json")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/config.json cannot be read ({first_line(error)}); give another --workdir.") from None


def without_folders(value: Any) -> Any:
    """Returns JSON values with each absolute path cut to its last name, so an export does not reveal its machine."""
    if isinstance(value, dict):
        return {name: without_folders(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_folders(inner) for inner in value]
    if isinstance(value, str) and value.startswith(("/", "~", "file://")):
        return pathlib.PurePath(value).name
    return value


def portable(saved: dict[str, Any]) -> dict[str, Any]:
    """Returns a config's JSON values as an export has them: without absolute paths, and with the default data.dir."""
    content = without_folders(saved)
    if content["data"]["dir"] != saved["data"]["dir"]:
        content["data"]["dir"] = Settings().data.dir
    return content


def _restore_folders(config: ml_collections.ConfigDict, own: dict[str, Any]) -> None:
    """Restores absolute paths in an export's config from the run beside it, where they end in the config's names."""
    exported, mine = flatten(portable(own)), flatten(config)
    config.update_from_flattened_dict(
        {
            name: value
            for name, value in flatten(own).items()
            if exported[name] != value and mine[name] == exported[name]
        }
    )


def is_export(workdir: str) -> bool:
    """Returns whether --mode=export wrote this folder."""
    return (files.absolute(workdir) / "manifest.json").exists()
