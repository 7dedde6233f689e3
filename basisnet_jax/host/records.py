"""JSON objects, checked: as dictionaries and as typed dataclasses."""

import dataclasses
import json
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def typed(kind: type[T], content: Any) -> T:
    """Makes a dataclass from a JSON object, and checks the object: anybody may have written it.

    Args:
      kind: the dataclass. Fields may be scalars, dataclasses, lists and dictionaries of these, each perhaps None.
        Values of fields of other types are not checked.
      content: the parsed JSON.

    Raises:
      TypeError: `content` is not an object, or a field is missing, unknown or of another type.
    """
    if not isinstance(content, dict):
        raise TypeError(f"{kind.__name__} is not an object")
    kinds = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: _value(name, kinds.get(name), value) for name, value in content.items()})


def read_object(path: Any) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Args:
      path: the file, a path of pathlib or epath.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is not JSON, is nested too deeply, or holds something other than an object.
    """
    try:
        content = json.loads(path.read_text())
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold an object")
    return content


def read(kind: type[T], path: Any) -> T:
    """Reads a dataclass from a JSON file, as `typed` makes it.

    Args:
      kind: the dataclass.
      path: the file, a path of pathlib or epath.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is not JSON, or holds something else.
    """
    try:
        return typed(kind, read_object(path))
    except TypeError as error:
        raise ValueError(f"{path} does not hold {kind.__name__}: {error}") from None


def _value(name: str, kind: Any, value: Any) -> Any:
    """Returns a field's value, converted to the field's type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # a type or None
        return None if value is None else _value(name, arguments[0], value)
    if dataclasses.is_dataclass(kind):
        return typed(kind, value)  # type: ignore[arg-type]
    if origin in (list, dict) and not isinstance(value, origin):
        raise TypeError(f"{name} is {value!r}")
    if origin is list:
        return [_value(name, arguments[0], inner) for inner in value]
    if origin is dict:
        return {key: _value(f"{name}.{key}", arguments[1], inner) for key, inner in value.items()}
    allowed: Any = (int, float) if kind is float else kind
    if kind in (int, float, str, bool) and (
        not isinstance(value, allowed) or isinstance(value, bool) != (kind is bool)
    ):
        raise TypeError(f"{name} is {value!r}")
    return value
