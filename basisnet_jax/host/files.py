"""Paths of files, and how files are written: whole, or not at all."""

import json
import os
from typing import Any

from etils import epath


def absolute(path: str) -> epath.Path:
    """Makes a user's path absolute: local, file://, or gs:// (a bucket), which epath's `resolve` would make local."""
    given = epath.Path(path.removeprefix("file://")).expanduser()
    return given.resolve() if is_local(given) else given


def is_local(path: epath.Path) -> bool:
    """Returns whether the operating system holds the file, rather than a bucket's service."""
    return "://" not in os.fspath(path)


def sync(path: epath.Path) -> None:
    """Writes a local file, or the names in a local folder, to disk with fsync, so that a power cut leaves them.

    A bucket needs nothing.

    Raises:
      OSError: the file cannot be brought to disk. Folders of some network file systems cannot; that is no error.
    """
    if not is_local(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def write(path: epath.Path, content: str | bytes) -> None:
    """Writes a file so that nobody ever sees a part of it, with the permissions that the user's umask leaves.

    After a power cut, too, the file is there with its old content or its new one.

    Raises:
      OSError: the file cannot be written; the file from before is still there.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: epath.Path, content: dict[str, Any]) -> None:
    """Writes a JSON file whole, or not at all."""
    write(path, json.dumps(content, indent=2) + "\n")
