"""JSON objects as typed dataclasses."""

import dataclasses
from typing import Any, TypeVar

T = TypeVar("T")


def typed(kind: type[T], content: Any) -> T:
    """Makes a dataclass of a JSON object that may have been written by anybody.

    Args:
      kind: the dataclass. Its fields of type int, float, str and bool are checked.
      content: what JSON gave.

    Raises:
      TypeError: `content` is no object, or a field is missing, unknown or of another type.
    """
    if not isinstance(content, dict):
        raise TypeError(f"{kind.__name__} is not an object")
    value = kind(**content)
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        here, wanted = getattr(value, field.name), field.type
        allowed: Any = (int, float) if wanted is float else wanted
        if wanted in (int, float, str, bool) and (
            not isinstance(here, allowed) or isinstance(here, bool) != (wanted is bool)
        ):
            raise TypeError(f"{field.name} is {here!r}")
    return value
