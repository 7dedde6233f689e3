"""How a setting is declared, once, as a field of a typed dataclass.

The ConfigDict that users see, its validation, the typed settings and the page docs/reference/settings.md come from it.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import ml_collections

from basisnet_jax.errors import UserError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a value must meet: the rule in words, such as 'must be at least 0', and whether a value meets it."""

    words: str
    holds: Callable[[Any], bool]


def at_least(least: float) -> Rule:
    """Returns the rule that a value is at least `least`."""
    return Rule(f"must be at least {least:g}", lambda value: value >= least)


def more_than(bound: float) -> Rule:
    """Returns the rule that a value is more than `bound`."""
    return Rule(f"must be more than {bound:g}", lambda value: value > bound)


def between(least: float, most: float) -> Rule:
    """Returns the rule that a value is in `least` to `most`, both included."""
    return Rule(f"must be in {least:g} to {most:g}", lambda value: least <= value <= most)


def below(least: float, bound: float) -> Rule:
    """Returns the rule that a value is at least `least` and less than `bound`."""
    return Rule(f"must be at least {least:g} and less than {bound:,}", lambda value: least <= value < bound)


def above(bound: float, most: float) -> Rule:
    """Returns the rule that a value is more than `bound` and at most `most`."""
    return Rule(f"must be more than {bound:g} and at most {most:g}", lambda value: bound < value <= most)


def one_of(choices: Collection[str]) -> Rule:
    """Returns the rule that a value is one of some names; a registry's keys, if `choices` is one."""
    return Rule(f"must be one of {', '.join(name or repr(name) for name in choices)}", lambda value: value in choices)


def some_of(choices: Collection[str]) -> Rule:
    """Returns the rule that each of several values is one of some names."""
    return Rule(f"each must be one of {', '.join(choices)}", lambda values: {*values} <= {*choices})


def setting(default: Any, meaning: str, rule: Rule | None = None) -> Any:
    """Declares a setting as a field of a settings dataclass.

    Args:
      default: the value that it has where a config says nothing; its type is the setting's.
      meaning: what it does, in its unit.
      rule: what a value must meet.
    """
    metadata = {"meaning": meaning, "rule": rule, "may_change_on_resume": False}
    return dataclasses.field(default=default, metadata=metadata)


def changeable(default: Any, meaning: str, rule: Rule | None = None) -> Any:
    """Declares a setting as `setting` does, which a resumed run may change.

    Such a setting changes neither the parameters nor the order of the data.
    """
    metadata = {"meaning": meaning, "rule": rule, "may_change_on_resume": True}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Declared:
    """A setting as it was declared, with its full name, such as 'model.num_bases'."""

    name: str
    default: Any
    meaning: str
    rule: Rule | None
    may_change_on_resume: bool


def declared(settings: Any, prefix: str = "") -> Iterator[Declared]:
    """Yields each setting of a settings dataclass and of its groups, in their order; defaults are the instance's."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from declared(value, f"{prefix}{field.name}.")
        else:
            yield Declared(prefix + field.name, value, **field.metadata)


def to_config(settings: Any) -> ml_collections.ConfigDict:
    """Returns the settings as a ConfigDict, locked, so that a misspelled field is an error."""

    def mutable(value: Any) -> Any:
        if not dataclasses.is_dataclass(value):
            return value
        fields = {field.name: mutable(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return ml_collections.ConfigDict(fields)

    return mutable(settings).lock()


def from_config(kind: type[T], config: Mapping[str, Any], prefix: str = "") -> T:
    """Returns the settings that a config holds, each checked against its own rule.

    Args:
      kind: the settings dataclass.
      config: a ConfigDict with its fields, which has checked their types.
      prefix: of the fields' names in sentences.

    Raises:
      UserError: a field is missing, is not finite, or breaks its rule; the sentence names the field.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        name, value = prefix + field.name, config.get(field.name)
        if value is None:
            fail(name, None, "is missing; start the config from basisnet_jax.config.default()")
        if field.metadata:
            values[field.name] = _checked(name, value, field.type, field.metadata["rule"])
        else:
            values[field.name] = from_config(field.type, value, f"{name}.")  # type: ignore[arg-type]
    return kind(**values)


def _checked(name: str, value: Any, kind: Any, rule: Rule | None) -> Any:
    if kind is not str and not isinstance(value, bool | int | float | str):
        value = tuple(value)
        if not all(isinstance(item, str) for item in value):
            fail(name, value, "must be strings")
    if isinstance(value, float) and not math.isfinite(value):
        fail(name, value, "must be finite")
    if rule and not rule.holds(value):
        fail(name, value, rule.words)
    return value


def as_json(settings: Any) -> dict[str, Any]:
    """Returns the settings as JSON values: what `config.json` holds."""
    values = dataclasses.asdict(settings)

    def listed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: listed(inner) for name, inner in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return listed(values)


def fail(field: str, value: Any, rule: str) -> NoReturn:
    """Raises UserError: the field, its value, and the rule that it breaks."""
    raise UserError(f"config.{field} = {value!r}: {rule}.")
