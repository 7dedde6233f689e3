"""What a command line asks for, before the flags of the program are known."""

from collections.abc import Sequence

from absl import flags


def read(argv: Sequence[str], *names: str) -> dict[str, str | None]:
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
