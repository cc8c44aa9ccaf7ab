"""Settings as nested, frozen records that check themselves, and the flat names under which people give them.

A record is a frozen dataclass that inherits :class:`Record`. A field may be a record itself. Every other field has one flat
name among all the records inside one another: its own, unless :func:`setting` gives another. Keywords, options of the command
line, messages and the files of older versions know the flat names: ``learning_rate`` is ``optimizer.learning_rate``.
"""

from __future__ import annotations

import dataclasses
import numbers
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from unet_fast.errors import InputError

_LARGEST_INTEGER, _LARGEST_FLOAT = 2**63 - 1, sys.float_info.max
R = TypeVar("R", bound="Record")


def setting(default: Any, flat: str, *, older: str | None = None) -> Any:
    """A field of a record whose flat name is not its own; ``older`` is the one that files of older versions have."""
    metadata = {"flat": flat, "older": older or flat}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Record:
    """A frozen dataclass whose values are checked: types by their hints, ranges by :meth:`check`.

    Raises:
        InputError: a value of another type or out of range, under its flat name.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if not is_of(value, hints[item.name]):
                expected = str(item.type).replace(" | ", " or ")
                raise InputError(f"{_flat(item)} is {short(value)}, expected {expected}")
        self.check()

    def check(self) -> None:
        """Raise ``InputError`` for a value out of range."""

    def check_positive(self, *names: str) -> None:
        """Raise unless these fields, where they are not None, are above 0."""
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name in names and value is not None and not value > 0:
                raise InputError(f"{_flat(item)} is {value}, expected a number above 0")

    def check_not_negative(self, *names: str) -> None:
        """Raise unless these fields are at least 0."""
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name in names and not value >= 0:
                raise InputError(f"{_flat(item)} is {value}, expected a number of at least 0")

    def check_fractions(self, *names: str) -> None:
        """Raise unless these fields are at least 0 and below 1."""
        for item in dataclasses.fields(self):
            if item.name in names and not 0 <= getattr(self, item.name) < 1:
                raise InputError(f"{_flat(item)} is {getattr(self, item.name)}, expected at least 0 and below 1.0")

    def flat(self) -> dict[str, Any]:
        """Every setting under its flat name, those of the records inside included."""
        found: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            found.update(value.flat() if isinstance(value, Record) else {_flat(item): value})
        return found

    def changed(self: R, **flat: Any) -> R:
        """A copy with other values under these flat names. Raises ``InputError`` for a name that is none."""
        return from_flat(type(self), {**self.flat(), **flat})


def flat_names(kind: type[Record]) -> list[str]:
    """The flat names of a record, in order."""
    names: list[str] = []
    for item in dataclasses.fields(kind):
        inner = _record_of(kind, item.name)
        names += [_flat(item)] if inner is None else flat_names(inner)
    return names


def from_flat(kind: type[R], values: Mapping[str, Any]) -> R:
    """The record with these values under flat names; the others have their defaults.

    Raises:
        InputError: an unknown name, or a value that the record refuses.
    """
    unknown = sorted(set(values) - set(flat_names(kind)))
    if unknown:
        raise InputError(f"unknown setting {', '.join(unknown)}")
    return _from_flat(kind, values)


def _from_flat(kind: type[R], values: Mapping[str, Any]) -> R:
    arguments: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        inner = _record_of(kind, item.name)
        if inner is not None:
            arguments[item.name] = _from_flat(inner, values)
        elif _flat(item) in values:
            arguments[item.name] = values[_flat(item)]
    return kind(**arguments)


def from_json(kind: type[R], values: Mapping[str, Any], *, flat: bool = False) -> R:
    """The record that :func:`dataclasses.asdict` made these values of; with ``flat``, of :meth:`Record.flat`.

    JSON has no tuples: lists become what the hints say.

    Raises:
        InputError: an unknown name, or a value that the record refuses.
    """
    return from_flat(kind, _with_tuples(kind, _renamed(kind, values) if flat else _flattened(kind, values)))


def _renamed(kind: type[Record], values: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(values)
    for item in dataclasses.fields(kind):
        inner, older = _record_of(kind, item.name), item.metadata.get("older")
        if inner is not None:
            changed = _renamed(inner, changed)
        elif older in changed:
            changed[_flat(item)] = changed.pop(older)
    return changed


def _flattened(kind: type[Record], values: Mapping[str, Any], inside: str = "") -> dict[str, Any]:
    items = {item.name: item for item in dataclasses.fields(kind)}
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in items:
            raise InputError(f"unknown setting {inside}{name}: was it written by a newer version?")
        inner = _record_of(kind, name)
        if inner is None:
            found[_flat(items[name])] = value
        elif isinstance(value, dict):
            found.update(_flattened(inner, value, f"{inside}{name}."))
        else:
            raise InputError(f"{inside}{name} is {short(value)}, expected a record")
    return found


def _with_tuples(kind: type[Record], values: Mapping[str, Any]) -> dict[str, Any]:
    changed, hints = dict(values), typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        inner, hint = _record_of(kind, item.name), hints[item.name]
        if inner is not None:
            changed = _with_tuples(inner, changed)
        elif isinstance(changed.get(_flat(item)), list):
            choices = (hint, *typing.get_args(hint))
            if any(typing.get_origin(choice) is tuple for choice in choices):
                changed[_flat(item)] = tuple(changed[_flat(item)])
    return changed


def _flat(item: dataclasses.Field[Any]) -> str:
    return str(item.metadata.get("flat", item.name))


def _record_of(kind: type[Record], name: str) -> type[Record] | None:
    hint = typing.get_type_hints(kind)[name]
    return hint if isinstance(hint, type) and issubclass(hint, Record) else None


def is_of(value: object, hint: Any) -> bool:
    """Whether a value is of the type of a hint: finite numbers, no truth value for a number."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if hint is type(None):
        return value is None
    if origin in (types.UnionType, typing.Union):
        return any(is_of(value, each) for each in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        wanted = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        return len(value) == len(wanted) and all(map(is_of, value, wanted))
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and abs(float(value)) <= _LARGEST_FLOAT
    if hint is int:
        return (
            isinstance(value, numbers.Integral) and not isinstance(value, bool) and abs(int(value)) <= _LARGEST_INTEGER
        )
    return isinstance(value, hint)


def short(value: object) -> str:
    """A value as text of at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
