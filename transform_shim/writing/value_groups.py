"""Groups of Python values that are written alike, and values as JSON text."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import ipaddress
import pathlib
import uuid
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa

__all__ = [
    "MAYBE_NULL_TYPES",
    "NULL_TYPES",
    "base64_text",
    "duration_text",
    "group_of",
    "interval_text",
    "mixed_text",
    "nested_text",
    "type_name",
]

#: NaN, and numpy's NaT, which is of no type of its own.
MAYBE_NULL_TYPES = (float, np.floating, np.datetime64, np.timedelta64)
NULL_TYPES = (type(None), type(pd.NaT), type(pd.NA))
#: First match counts: bool before int, numpy's timedelta before its integers, datetime before date.
_GROUPS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("null", NULL_TYPES),
    ("text", (str,)),
    ("boolean", (bool, np.bool_)),
    ("duration", (dt.timedelta, np.timedelta64, pd.DateOffset)),
    ("integer", (int, np.integer)),
    ("float", (float, np.floating)),
    ("decimal", (Decimal,)),
    ("datetime", (dt.datetime, np.datetime64)),
    ("date", (dt.date,)),
    ("time", (dt.time,)),
    ("bytes", (bytes, bytearray)),
    (
        "label",
        (uuid.UUID, ipaddress._IPAddressBase, ipaddress._BaseNetwork, pathlib.PurePath, pd.Period, pd.Interval),
    ),
    # unique() returns an ExtensionArray for all dtypes but numpy's own: in pandas 3 for text as well
    ("nested", (list, tuple, dict, set, frozenset, np.ndarray, pd.api.extensions.ExtensionArray)),
)

_group_by_type: dict[type, str | None] = {}


def group_of(kind: type) -> str | None:
    """Return the group of a class; None for one whose values cannot be written."""
    if kind not in _group_by_type:
        _group_by_type[kind] = next((name for name, types in _GROUPS if issubclass(kind, types)), None)
    return _group_by_type[kind]


def nested_text(value: Any) -> str:
    """Return a list, tuple, dict, set or array as compact JSON text; NaN is null, a value beyond JSON a TypeError."""
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    try:
        return orjson.dumps(value, default=_nested_default, option=options).decode()
    except orjson.JSONEncodeError as error:
        if not _is_mendable(error):
            raise error.__cause__ or error from None  # the cause is what the function below says
    try:
        return orjson.dumps(_mended(value), default=_nested_default, option=options).decode()
    except orjson.JSONEncodeError as error:
        if "OPT_NON_STR_KEYS" in str(error):
            raise TypeError("a dictionary with a key that cannot be a text, such as a tuple") from None
        raise error.__cause__ or error from None


def _is_mendable(error: orjson.JSONEncodeError) -> bool:
    return "OPT_NON_STR_KEYS" in str(error) or "64-bit" in str(error)


def _mended(value: Any) -> Any:
    """Return a nested value without what orjson refuses: integers beyond 64 bits, and keys of numpy and pandas."""
    if isinstance(value, dict):
        return {_key(key): _mended(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, pd.api.extensions.ExtensionArray)) or _has_objects(value):
        return list(map(_mended, _listed(value)))
    return orjson.Fragment(str(value)) if isinstance(value, int) and not -(2**63) <= value < 2**64 else value


def _key(key: Any) -> Any:
    if group_of(type(key)) in (None, "nested"):
        return key
    text = mixed_text(key)
    return "null" if text is None else text


def _has_objects(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == object and value.ndim > 0


def _nested_default(value: Any) -> Any:
    group = group_of(type(value))
    if group == "null":
        return None
    if group == "decimal":
        return orjson.Fragment(str(value)) if value.is_finite() else None
    if group == "integer":
        return orjson.Fragment(str(int(value)))
    if isinstance(value, pa.MonthDayNano):
        return interval_text(value)
    if group == "nested":
        return dict(value) if isinstance(value, dict) else _listed(value)
    if group in ("datetime", "date", "time"):
        return (pd.Timestamp(value) if isinstance(value, np.datetime64) else value).isoformat()
    if group in ("label", "text"):
        return str(value)
    if group == "bytes":
        return base64_text(value)
    if group == "duration":
        return duration_text(value)
    raise TypeError(f"a value of type {type_name(type(value))} cannot be written as JSON")


def _listed(value: Any) -> list[Any]:
    if isinstance(value, (set, frozenset)):
        with contextlib.suppress(TypeError):
            return sorted(value)  # Python orders the texts of a set anew in each process
    return list(value)


def type_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def mixed_text(value: Any) -> str | None:
    """Return a value as JSON has it; a text, date or the like without quotes."""
    group = group_of(type(value))
    if group == "text":
        return str(value)
    if group == "integer":
        return str(int(value))
    text = nested_text(value)
    if text == "null":  # an infinity
        return None
    return str(orjson.loads(text)) if text.startswith('"') else text


def duration_text(value: Any) -> str:
    """Return a duration, or the offset that pandas makes of an interval of Arrow, as an ISO 8601 duration."""
    if not isinstance(value, pd.DateOffset):
        return str(pd.Timedelta(value).isoformat())
    parts = {"months": 0, "days": 0, "nanoseconds": 0, **value.kwds}
    if len(parts) > 3 or value.n != 1:
        raise TypeError("an offset of other than months, days and nanoseconds cannot be written; make it text")
    return interval_text(pa.MonthDayNano(list(parts.values())))


def interval_text(value: Any) -> str:
    """Return months, days and nanoseconds as an ISO 8601 duration."""
    whole, fraction = divmod(abs(value.nanoseconds), 10**9)
    seconds = f"{'-' if value.nanoseconds < 0 else ''}{whole}" + f".{fraction:09}".rstrip("0").rstrip(".")
    return f"P{value.months}M{value.days}DT{seconds}S"


def base64_text(value: bytes) -> str:
    return base64.b64encode(value).decode()
