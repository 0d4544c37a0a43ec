"""Frozen dataclasses to JSON and back, checked against their annotations.

The privileged side of a socket must not meet an attribute of a type it did not expect, and a hand-written check for
each field of thirty messages would be where the mistake is. So the annotations are the check. Understood are
``bool``, ``int``, ``float``, ``str``, ``None`` and unions with it, ``Literal``, ``tuple[X, ...]``, ``dict[str, X]``,
nested dataclasses, and ``object`` for a value that is handed on unread.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_LONGEST_STRING = 32_768
_MOST_ITEMS = 4_096


class CodecError(ValueError):
    """A value does not have the form its annotation asks for; the text names the field."""


def to_json(value: object) -> Any:
    """Return `value` in terms of JSON's own types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    return value


def from_json(cls: type[T], value: object, where: str = "") -> T:
    """Return an instance of the dataclass `cls` from a JSON object.

    Absent fields take their defaults; unknown fields are an error.

    Raises
    ------
    CodecError
        The value does not fit; nothing was constructed.
    """
    where = where or cls.__name__
    if not isinstance(value, dict):
        raise CodecError(f"{where} must be an object, not {type(value).__name__}")
    hints = _hints(typing.cast("type", cls))
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise CodecError(f"{where} has unknown fields: {', '.join(map(repr, unknown))[:200]}")
    arguments = {name: _convert(hints[name], item, f"{where}.{name}") for name, item in value.items()}
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:  # a field without default is absent, or __post_init__ objects
        raise CodecError(f"{where}: {error}") from None


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _convert(hint: Any, value: object, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(hint, value, where)
    if origin is typing.Literal:
        if value in typing.get_args(hint) and isinstance(value, str):
            return value
        raise CodecError(f"{where} must be one of {', '.join(map(str, typing.get_args(hint)))}")
    if origin is tuple or origin is dict:
        return _convert_collection(origin, typing.get_args(hint), value, where)
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast("type[Any]", hint), value, where)
    return _convert_scalar(hint, value, where)


def _convert_union(hint: Any, value: object, where: str) -> Any:
    choices = [choice for choice in typing.get_args(hint) if choice is not type(None)]
    if value is None and len(choices) < len(typing.get_args(hint)):
        return None
    return _convert(choices[0], value, where)


def _convert_collection(origin: Any, arguments: tuple[Any, ...], value: object, where: str) -> Any:
    expected: type = list if origin is tuple else dict
    if not isinstance(value, expected) or len(typing.cast("list[Any]", value)) > _MOST_ITEMS:
        raise CodecError(f"{where} must be a JSON {expected.__name__} of at most {_MOST_ITEMS} items")
    if isinstance(value, dict):
        return {key: _convert(arguments[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    items = typing.cast("list[Any]", value)
    return tuple(_convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(items))


def _convert_scalar(hint: Any, value: object, where: str) -> Any:
    if hint is object:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int to isinstance, and a pid of True is not a pid.
    if type(value) is not hint:
        raise CodecError(f"{where} must be {hint.__name__}, not {type(value).__name__}")
    if isinstance(value, str) and len(value) > _LONGEST_STRING:
        raise CodecError(f"{where} is longer than {_LONGEST_STRING} characters")
    return value
