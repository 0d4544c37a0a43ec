"""Object columns: one sort of value a column, found before the first row is written.

============================ ===========================================================
values                       written as
============================ ===========================================================
str                          text
bool                         boolean
int                          integer; beyond 64 bits a decimal without fraction
float, or int with float     float; decimal if there is an int that no double holds
Decimal, also with numbers   decimal, all digits; NaN and infinities are null
date                         date; with datetime its midnight
datetime, Timestamp          clock reading, or instant in UTC
time                         time of day (Metabase stores text)
timedelta                    ISO 8601 duration text
bytes                        base64 text
UUID, IP address, path,
Period, Interval             their ``str()``
list, tuple, dict, set,
array of numpy or pandas     JSON text
None, NaN, NaT, NA           null
another mixture              text as JSON has it: ``true``, ``1``, ``2.5``; with a warning
anything else                an error that names column and row
============================ ===========================================================
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from transform_shim.core.decimals import decimal_array
from transform_shim.core.errors import OutputInvalid, shorten
from transform_shim.core.notices import warn
from transform_shim.core.shared_objects import text_array
from transform_shim.writing.value_groups import (
    MAYBE_NULL_TYPES,
    NULL_TYPES,
    base64_text,
    duration_text,
    group_of,
    mixed_text,
    nested_text,
    type_name,
)

__all__ = ["MixedColumns", "ObjectColumn"]

#: The result of a column with values of several types.
MixedColumns = Literal["text", "error"]

#: Groups that may be mixed, and their common group.
_TOGETHER: dict[frozenset[str], str] = {
    frozenset({"integer", "float"}): "float",
    frozenset({"integer", "decimal"}): "decimal",
    frozenset({"float", "decimal"}): "decimal",
    frozenset({"integer", "float", "decimal"}): "decimal",
    frozenset({"date", "datetime"}): "datetime",
}


class ObjectColumn:
    """The values of one object column and their common group; conversion happens a slice at a time.

    Raises
    ------
    OutputInvalid
        If a value cannot be written or the values do not go together.
    """

    def __init__(self, name: str, values: Any, mixed: MixedColumns = "text") -> None:
        self.name, self._values, self._mixed = name, values, mixed
        self._group = self._find_group()
        self._is_aware, self._unit = False, "us"
        if self._group == "datetime":
            self._look_at_datetimes()
        self.type: pa.DataType = self._find_type()

    def slice(self, start: int, stop: int) -> pa.Array:
        """Return rows start to stop (exclusive) as an Arrow array of :attr:`type`."""
        values = self._values[start:stop]
        if self._group == "text":
            # the texts of pandas 2; value by value, a table of flights took 1.8 times as long
            with contextlib.suppress(UnicodeEncodeError, pa.ArrowInvalid, pa.ArrowTypeError):
                return text_array(values)
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
            if issubclass(kind, NULL_TYPES) or (issubclass(kind, MAYBE_NULL_TYPES) and value != value):
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
        if pd.api.types.infer_dtype(self._values, skipna=True) == "string":  # a tenth of the time of the look below
            return "text"
        groups: dict[str, type] = {}
        for kind in set(map(type, self._values)):
            group = group_of(kind)
            if group is None:
                row = self._row_of({kind})
                raise OutputInvalid(f"a value of type {type_name(kind)} cannot be written", column=self.name, row=row)
            groups.setdefault(group, kind)
        groups.pop("null", None)
        if "float" in groups and all(self._is_nan(v) for v in self._values):
            del groups["float"]
        if len(groups) <= 1:
            return next(iter(groups), "null")
        together = _TOGETHER.get(frozenset(groups))
        if together is None:
            return self._mix(self._first_other(set(groups)))
        if together == "float" and not all(map(_is_double, self._values)):
            return "decimal"
        return together

    def _mix(self, contradiction: OutputInvalid) -> str:
        """Return the group of mixed columns, with a warning, or raise if they are not wanted."""
        if self._mixed == "error":
            raise contradiction
        warn(f"{contradiction}; the column is written as text")
        return "mixed"

    @staticmethod
    def _is_nan(value: Any) -> bool:
        """Return True for NaN and for every value that is not a float."""
        return not isinstance(value, (float, np.floating)) or bool(value != value)

    def _first_other(self, groups: set[str]) -> OutputInvalid:
        before: dict[str, None] = {}
        for row, value in enumerate(self._values):
            group = group_of(type(value))
            if group is None or group == "null" or (group == "float" and self._is_nan(value)) or group in before:
                continue
            if before and frozenset({*before, group}) not in _TOGETHER:
                after = " and ".join(before)
                problem = f"{shorten(value)} is of another type than the values before it ({group} after {after})"
                return OutputInvalid(problem, column=self.name, row=row)
            before[group] = None
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
        whole = [v for v in self._values if group_of(type(v)) == "integer"]
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
            if group_of(type(value)) not in {"date", "datetime"} or value != value:
                continue
            aware.add(getattr(value, "tzinfo", None) is not None)
            if len(aware) > 1:
                self._group = self._mix(self._invalid(row, "date-times with and without a time zone"))
                return
            if getattr(value, "nanosecond", 0) or (isinstance(value, np.datetime64) and value.dtype == "M8[ns]"):
                self._unit = "ns"
        self._is_aware = True in aware

    def _row_of(self, kinds: set[type]) -> int:
        return next(row for row, value in enumerate(self._values) if type(value) in kinds)

    def _invalid(self, row: int, problem: str) -> OutputInvalid:
        return OutputInvalid(f"{shorten(self._values[row])}: {problem}", column=self.name, row=row)


def _has_surrogate(text: Any) -> bool:
    try:
        str(text).encode()
    except UnicodeEncodeError:
        return True
    return False


def _decimal(value: Any) -> Decimal | None:
    number = Decimal(repr(float(value))) if isinstance(value, (float, np.floating)) else Decimal(_python_integer(value))
    return number if number.is_finite() else None


def _python_integer(value: Any) -> Any:
    return int(value) if isinstance(value, np.integer) else value


def _is_double(value: Any) -> bool:
    """Return False for an integer that no double holds."""
    try:
        return not isinstance(value, (int, np.integer)) or int(float(value)) == int(value)
    except OverflowError:
        return False


def _datetime(value: Any, is_aware: bool, unit: str) -> Any:
    """Return microseconds or nanoseconds since 1970, which pa.array takes for timestamps without a look at zones."""
    if not isinstance(value, np.datetime64):  # pandas misreads those finer than nanoseconds
        stamp = pd.Timestamp(value)
        value = (stamp.tz_convert("UTC").tz_localize(None) if is_aware else stamp).to_datetime64()
    ticks = value.astype(f"M8[{unit}]")
    if ticks.astype(value.dtype) != value:  # numpy lets an overflow pass
        if unit == "ns":
            raise ValueError("a date-time outside of 1678 to 2262, beside others that have nanoseconds")
        raise ValueError("a date-time that microseconds cannot represent")
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
    "mixed": pa.large_string(),
}
_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "text": lambda value: value,
    "boolean": bool,
    "integer": int,
    "float": float,
    "decimal": _decimal,
    "datetime": lambda value: value,
    "date": lambda value: value,
    "time": _time,
    "duration": duration_text,
    "bytes": base64_text,
    "label": str,
    "nested": nested_text,
    "mixed": mixed_text,
}
