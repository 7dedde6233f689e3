"""Checksums of checkpoints: written with a checkpoint, compared before anything in it is used."""

import hashlib
from collections.abc import Iterator

import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from basisnet_jax.errors import UserError
from basisnet_jax.host import files

# Orbax writes the time of its commit into this file after all others. Nothing is restored from the file.
_STAMPED_LATER = "_CHECKPOINT_METADATA"
NAME = "checksums.sha256"  # in a checkpoint's folder; `sha256sum -c` reads it too
SET_ASIDE = "damaged"  # the folder beside `checkpoints/` for damaged checkpoints
_HEADER = "# sha256 of {} files"


def write_checksums(folder: epath.Path) -> None:
    """Writes the checksums of all files in a folder, as a whole or not at all, once those files are on disk.

    Orbax syncs the arrays alone, and leaves its own metadata, without which no array can be read, to the system.
    """
    for path in _files(folder):
        files.sync(path)
    for inner in _folders(folder):
        files.sync(inner)
    lines = [f"{_sha256(path)}  {path.relative_to(folder)}" for path in sorted(_files(folder))]
    files.write(folder / NAME, "\n".join([_HEADER.format(len(lines)), *lines, ""]))


def add_file(folder: epath.Path, name: str, content: str) -> None:
    """Adds a file to a folder that has checksums, then the file's checksum, each as a whole or not at all.

    A file whose checksum is missing because of a kill counts as missing: see `read_added`.
    """
    files.write(folder / name, content)
    _, *lines = (folder / NAME).read_text().splitlines()
    lines = [line for line in lines if not line.endswith(f"  {name}")] + [f"{_sha256(folder / name)}  {name}"]
    files.write(folder / NAME, "\n".join([_HEADER.format(len(lines)), *lines, ""]))


def read_added(folder: epath.Path, name: str) -> str | None:
    """Returns the content of a file that `add_file` added; None if the file is missing or not as it was written."""
    try:
        if f"{_sha256(folder / name)}  {name}" in (folder / NAME).read_text().splitlines():
            return (folder / name).read_text()
    except (OSError, ValueError):  # missing, or not UTF-8
        pass
    return None


def damage(folder: epath.Path) -> str | None:
    """Returns what is wrong with a folder's files, as a part of a sentence; None if they are as they were written.

    A folder without checksums, as older versions wrote it, cannot be checked, which is logged. If an older checkpoint
    has checksums, the folder is damaged.
    """
    try:
        if not (folder / NAME).exists():
            before = (other for other in checkpoint_folders(folder.parent) if int(other.name) < int(folder.name))
            if any((other / NAME).exists() for other in before):
                return f"{NAME} is missing"
            logging.warning("%s has no %s, so it cannot be checked", folder, NAME)
            return None
        header, *lines = (folder / NAME).read_text().splitlines()
        if header != _HEADER.format(len(lines)):
            return f"{NAME} is cut off"
        for checksum, _, name in (line.partition("  ") for line in lines):
            if not (folder / name).exists():
                return f"{name} is missing"
            if _sha256(folder / name) != checksum:
                return f"{name} differs from its checksum"
    except (OSError, ValueError) as error:  # ValueError: no lines, not UTF-8, or an invalid file name
        return f"its files cannot be read ({str(error).splitlines()[0]})"
    return None


def quarantine_damaged_checkpoints(checkpoints: epath.Path) -> None:
    """Moves damaged checkpoints out of the way, so that a run resumes from the newest sound one.

    Raises:
      UserError: all checkpoints are damaged.
    """
    steps = checkpoint_folders(checkpoints)
    damaged = {folder: reason for folder in steps if (reason := damage(folder))}
    if damaged and len(damaged) == len(steps):
        reasons = "; ".join(f"step {folder.name}: {reason}" for folder, reason in damaged.items())
        raise UserError(f"all checkpoints in {checkpoints} are damaged ({reasons}); give another --workdir.")
    for folder, reason in damaged.items():
        place = checkpoints.parent / SET_ASIDE
        place.mkdir(exist_ok=True)
        target = next(path for number in range(10**6) if not (path := place / f"{folder.name}.{number}").exists())
        folder.rename(target)
        logging.warning("the checkpoint of step %s is damaged (%s) and was moved to %s", folder.name, reason, target)


def checkpoint_folders(checkpoints: epath.Path) -> list[epath.Path]:
    """Returns the folders of complete checkpoints in order of their steps."""
    folders = checkpoints.iterdir() if checkpoints.is_dir() else ()
    steps = (path for path in folders if path.name.isdecimal() and ocp.utils.is_checkpoint_finalized(path))
    return sorted(steps, key=lambda path: int(path.name))


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        elif path.name not in (NAME, _STAMPED_LATER):
            yield path


def _folders(folder: epath.Path) -> Iterator[epath.Path]:
    yield folder
    for path in folder.iterdir():
        if path.is_dir():
            yield from _folders(path)


def _sha256(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
