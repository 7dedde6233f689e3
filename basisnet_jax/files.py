"""How files come into being: whole, or not at all."""

from etils import epath


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
