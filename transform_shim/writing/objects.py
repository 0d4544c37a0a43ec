"""Object columns: one sort of value a column, found before the first row is written.

============================ ===========================================================
values                       written as
============================ ===========================================================
str                          text
bool                         boolean
int                          integer; beyond 64 bits a decimal without fraction
float, or int beside float   float (an int that no double holds is an error)
Decimal, also beside numbers decimal, all digits; NaN and infinities are null
date                         date; beside datetime that midnight
datetime, Timestamp          clock reading, or instant in UTC; a mixture of both is an error
time                         time of day (Metabase stores text)
timedelta                    ISO 8601 duration text
bytes                        base64 text
UUID, IP address, path,
Period, Interval             their ``str()``
list, tuple, dict, ndarray   JSON text
None, NaN, NaT, NA           null
anything else, or a mixture  an error that names column and row
============================ ===========================================================
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import pathlib
import uuid
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa

from transform_shim.errors import OutputInvalid, shorten
from transform_shim.reading.numbers import decimal_array

__all__ = ["ObjectColumn", "nested_text"]

#: NaN, and numpy's NaT, which is of no type of its own.
_MAYBE_NULL_TYPES = (float, np.floating, np.datetime64, np.timedelta64)
_NULL_TYPES = (type(None), type(pd.NaT), type(pd.NA))
#: First match counts: bool before int, numpy's timedelta before its integers, datetime before date.
_GROUPS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("null", _NULL_TYPES),
    ("text", (str,)),
    ("boolean", (bool, np.bool_)),
    ("duration", (dt.timedelta, np.timedelta64)),
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
    ("nested", (list, tuple, dict, np.ndarray)),
)
#: Which groups may stand beside each other, and what they become together.
_TOGETHER: dict[frozenset[str], str] = {
    frozenset({"integer", "float"}): "float",
    frozenset({"integer", "decimal"}): "decimal",
    frozenset({"float", "decimal"}): "decimal",
    frozenset({"integer", "float", "decimal"}): "decimal",
    frozenset({"date", "datetime"}): "datetime",
}


_group_by_type: dict[type, str | None] = {}


def _group(kind: type) -> str | None:
    if kind not in _group_by_type:
        _group_by_type[kind] = next((name for name, types in _GROUPS if issubclass(kind, types)), None)
    return _group_by_type[kind]


class ObjectColumn:
    """The values of one object column and what they are; conversion happens a slice at a time.

    Raises
    ------
    OutputInvalid
        If a value cannot be written or the values do not go together.
    """

    def __init__(self, name: str, values: Any) -> None:
        self.name, self._values = name, values
        self._group = self._find_group()
        self._is_aware, self._unit = False, "us"
        if self._group == "datetime":
            self._look_at_datetimes()
        self.type: pa.DataType = self._find_type()

    def slice(self, start: int, stop: int) -> pa.Array:
        """Rows start to stop (exclusive) as an Arrow array of :attr:`type`."""
        values = self._values[start:stop]
        convert = _CONVERTERS.get(self._group)
        if convert is None:
            return pa.nulls(len(values), self.type)
        cells = self._each(convert, values, start)
        try:
            return self._build(cells)
        except OverflowError as error:
            raise self._invalid(start + int(error.args[0]), "more digits than any column holds") from None
        except UnicodeEncodeError:
            row = next(i for i, text in enumerate(cells) if text is not None and _has_surrogate(text))
            raise self._invalid(start + row, "half a surrogate pair, which no text can hold") from None
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError):
            row = next((i for i, cell in enumerate(cells) if not self._builds(cell)), 0)
            raise self._invalid(start + row, "cannot be written") from None

    def _build(self, cells: list[Any]) -> pa.Array:
        if pa.types.is_decimal(self.type):
            return decimal_array(cells).cast(self.type)
        return pa.array(cells, self.type)

    def _builds(self, cell: Any) -> bool:
        try:
            self._build([cell])
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError, OverflowError):
            return False
        return True

    def _each(self, convert: Callable[[Any], Any], values: Sequence[Any], start: int) -> list[Any]:
        cells: list[Any] = []
        for value in values:
            kind = type(value)
            if issubclass(kind, _NULL_TYPES) or (issubclass(kind, _MAYBE_NULL_TYPES) and value != value):
                cells.append(None)
                continue
            try:
                if self._group == "datetime":
                    cells.append(_datetime(value, self._is_aware, self._unit))
                else:
                    cells.append(convert(value))
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                raise self._invalid(start + len(cells), str(error) or type(error).__name__) from None
        return cells

    def _find_group(self) -> str:
        groups: dict[str, type] = {}
        for kind in set(map(type, self._values)):
            group = _group(kind)
            if group is None:
                row = self._row_of({kind})
                raise OutputInvalid(f"a value of type {_name(kind)} cannot be written", column=self.name, row=row)
            groups.setdefault(group, kind)
        groups.pop("null", None)
        if "float" in groups and all(self._is_nan(v) for v in self._values):
            del groups["float"]
        if len(groups) <= 1:
            return next(iter(groups), "null")
        together = _TOGETHER.get(frozenset(groups))
        if together is None:
            raise self._mixed(set(groups))
        return together

    @staticmethod
    def _is_nan(value: Any) -> bool:
        """True for NaN and for everything that is no float."""
        return not isinstance(value, (float, np.floating)) or bool(value != value)

    def _mixed(self, groups: set[str]) -> OutputInvalid:
        first = None
        for row, value in enumerate(self._values):
            group = _group(type(value))
            if group == "null" or (group == "float" and self._is_nan(value)):
                continue
            first = first or group
            if group != first:
                problem = f"{shorten(value)} is of another type than the values before it ({group} after {first})"
                return OutputInvalid(problem, column=self.name, row=row)
        return OutputInvalid(f"values of several types ({', '.join(sorted(groups))})", column=self.name)

    def _find_type(self) -> pa.DataType:
        if self._group == "integer":
            return self._integer_type()
        if self._group == "decimal":
            return self._decimal_type()
        if self._group == "datetime":
            return pa.timestamp(self._unit, "UTC" if self._is_aware else None)
        return _TYPES[self._group]

    def _integer_type(self) -> pa.DataType:
        whole = [v for v in self._values if _group(type(v)) == "integer"]
        low, high = int(min(whole)), int(max(whole))
        if low >= -(2**63) and high < 2**63:
            return pa.int64()
        return pa.uint64() if low >= 0 and high < 2**64 else self._decimal_type()

    def _decimal_type(self) -> pa.DataType:
        cells = self._each(_decimal, self._values, 0)
        try:
            return decimal_array(cells).type
        except OverflowError as error:
            raise self._invalid(int(error.args[0]), "more digits than any column holds") from None

    def _look_at_datetimes(self) -> None:
        aware: set[bool] = set()
        for row, value in enumerate(self._values):
            if _group(type(value)) not in {"date", "datetime"} or value != value:
                continue
            aware.add(getattr(value, "tzinfo", None) is not None)
            if len(aware) > 1:
                raise self._invalid(row, "date-times with and without a time zone do not go together")
            if getattr(value, "nanosecond", 0) or (isinstance(value, np.datetime64) and str(value.dtype) == "<M8[ns]"):
                self._unit = "ns"
        self._is_aware = True in aware

    def _row_of(self, kinds: set[type]) -> int:
        return next(row for row, value in enumerate(self._values) if type(value) in kinds)

    def _invalid(self, row: int, problem: str) -> OutputInvalid:
        return OutputInvalid(f"{shorten(self._values[row])}: {problem}", column=self.name, row=row)


def nested_text(value: Any) -> str:
    """A list, tuple, dict or array as compact JSON text; NaN is null, what JSON cannot say is a TypeError."""
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    return orjson.dumps(value, default=_nested_default, option=options).decode()


def _nested_default(value: Any) -> Any:
    group = _group(type(value))
    if group == "null":
        return None
    if group == "decimal":
        return orjson.Fragment(str(value)) if value.is_finite() else None
    if group == "integer":
        return orjson.Fragment(str(int(value)))
    if group == "nested":
        return dict(value) if isinstance(value, dict) else list(value)
    if group in ("datetime", "date", "time"):
        return (pd.Timestamp(value) if isinstance(value, np.datetime64) else value).isoformat()
    if group in ("label", "text"):
        return str(value)
    if group == "bytes":
        return _base64(value)
    if group == "duration":
        return pd.Timedelta(value).isoformat()
    raise TypeError(f"a value of type {_name(type(value))} cannot be written as JSON")


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def _has_surrogate(text: Any) -> bool:
    try:
        str(text).encode()
    except UnicodeEncodeError:
        return True
    return False


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _decimal(value: Any) -> Decimal | None:
    number = Decimal(repr(float(value))) if isinstance(value, (float, np.floating)) else Decimal(_plain(value))
    return number if number.is_finite() else None


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, np.integer) else value


def _double(value: Any) -> float:
    number = float(value)
    if not isinstance(value, (float, np.floating)) and int(number) != int(value):
        raise ValueError("a whole number that no float holds, beside floats")
    return number


def _datetime(value: Any, is_aware: bool, unit: str) -> Any:
    """Microseconds or nanoseconds since 1970, which pa.array takes for timestamps without a look at zones."""
    if not isinstance(value, np.datetime64):  # pandas misreads those finer than nanoseconds
        stamp = pd.Timestamp(value)
        value = (stamp.tz_convert("UTC").tz_localize(None) if is_aware else stamp).to_datetime64()
    ticks = value.astype(f"M8[{unit}]")
    if ticks.astype(value.dtype) != value:  # numpy lets an overflow pass
        if unit == "ns":
            raise ValueError("a date-time outside of 1678 to 2262, beside others that have nanoseconds")
        raise ValueError("a date-time that microseconds cannot say")
    return int(ticks.astype(np.int64))


def _time(value: dt.time) -> dt.time:
    if value.tzinfo is not None:
        raise ValueError("a time of day with a time zone cannot be written; use a date-time")
    return value


_TYPES: dict[str, pa.DataType] = {
    "null": pa.large_string(),
    "text": pa.large_string(),
    "boolean": pa.bool_(),
    "float": pa.float64(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "duration": pa.large_string(),
    "bytes": pa.large_string(),
    "label": pa.large_string(),
    "nested": pa.large_string(),
}
_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "text": lambda value: value,
    "boolean": bool,
    "integer": int,
    "float": _double,
    "decimal": _decimal,
    "datetime": lambda value: value,
    "date": lambda value: value,
    "time": _time,
    "duration": lambda value: pd.Timedelta(value).isoformat(),
    "bytes": _base64,
    "label": str,
    "nested": nested_text,
}
