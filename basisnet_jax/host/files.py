"""Where files are, and how they come into being: whole, or not at all."""

import json
import os
from typing import Any

from etils import epath


def absolute(path: str) -> epath.Path:
    """A path as a user gives it: local, file://, or of a bucket (gs://), which epath's `resolve` would make local."""
    given = epath.Path(path.removeprefix("file://")).expanduser()
    return given.resolve() if is_local(given) else given


def is_local(path: epath.Path) -> bool:
    """Whether the operating system knows the file, rather than a bucket's service."""
    return "://" not in os.fspath(path)


def write(path: epath.Path, content: str | bytes) -> None:
    """Writes a file, of which nobody ever sees a part, with the permissions that the user's umask leaves.

    Raises:
      OSError: it cannot be written; what was there before is there still.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: epath.Path, content: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    write(path, json.dumps(content, indent=2) + "\n")
