"""Python values of one column to an Arrow array, by the column's kind; a value that contradicts the kind is an error.

=========== ======================================================= =================================
kind        accepted                                                becomes
=========== ======================================================= =================================
INTEGER     whole numbers, also as ``5.0`` or ``1E3``               int64; beyond it decimal, scale 0
NUMBER      any number                                              as INTEGER, else decimal
FLOAT       any number; ``"NaN"``, ``"Infinity"``, ``"-Infinity"``   double
DECIMAL     any number, also as text; ``"NaN"`` (null)              decimal
BOOLEAN     true, false, 0, 1                                       bool
TEXT        text; anything else as its JSON text                    large_string
JSON_TEXT   text; anything else as its JSON text                    large_string
DATE …      ISO text                                                date32, timestamp
=========== ======================================================= =================================

Numbers that need more digits than any Arrow decimal has become their texts, and so do date-times that no Arrow
timestamp holds: pandas has a type for them, and other frames refuse them.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from transform_shim.core.base_types import Kind
from transform_shim.core.decimals import decimal_array
from transform_shim.core.errors import InputInvalid, shorten
from transform_shim.reading.values.json_text import json_text
from transform_shim.reading.values.temporal import NotTemporal, to_clock, to_dates, to_instants

__all__ = ["MOST_INTEGER_DIGITS", "TEMPORAL", "array_of"]

#: Digits of the largest integer that Python converts from and to text.
MOST_INTEGER_DIGITS = sys.int_info.default_max_str_digits

_SPECIAL_DOUBLES = {
    "NaN": math.nan,
    "Infinity": math.inf,
    "+Infinity": math.inf,
    "-Infinity": -math.inf,
    "INF": math.inf,
    "-INF": -math.inf,
}
#: Arrow's parser takes these for decimals, and a value must not depend on which parser its block came to.
_NUMBER_TEXT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,9})?", re.ASCII)
_SMALLEST_INT64, _LARGEST_INT64 = -(2**63), 2**63 - 1

TEMPORAL: dict[Kind, Callable[[pa.Array], pa.Array]] = {
    Kind.DATE: to_dates,
    Kind.DATETIME: to_clock,
    Kind.INSTANT: to_instants,
}


class _Unfit(ValueError):
    """A value contradicts its column's kind; the argument says what was expected."""


def array_of(values: Sequence[Any], kind: Kind, table: str, column: str, lines: Sequence[int]) -> pa.Array:
    """Convert the values of one column; `lines` are the line numbers they came from.

    Raises
    ------
    InputInvalid
        At the first value that contradicts the kind.
    """
    one = _ONE[kind]
    converted: list[Any] = []
    for value, line in zip(values, lines, strict=True):
        try:
            converted.append(None if value is None else one(value))
        except _Unfit as error:
            raise _contradiction(table, column, line, str(error), value) from None
    try:
        return _build(converted, kind)
    except OverflowError:
        return pa.array([None if value is None else str(value) for value in converted], pa.large_string())
    except NotTemporal as error:
        raise _contradiction(table, column, lines[error.index], error.expected, error.text) from None
    except UnicodeEncodeError:
        index = next(i for i, text in enumerate(converted) if isinstance(text, str) and not _encodable(text))
        problem = f"{shorten(values[index])} holds half a surrogate pair, which no text can hold"
        raise InputInvalid(table, problem, line=lines[index], column=column) from None


def _build(values: list[Any], kind: Kind) -> pa.Array:
    if kind in (Kind.INTEGER, Kind.NUMBER):
        if all(v is None or (isinstance(v, int) and _SMALLEST_INT64 <= v <= _LARGEST_INT64) for v in values):
            return pa.array(values, pa.int64())
        return decimal_array(values)
    if kind is Kind.DECIMAL:
        return decimal_array(values)
    if kind is Kind.FLOAT:
        return pa.array(values, pa.float64(), from_pandas=False)
    if kind is Kind.BOOLEAN:
        return pa.array(values, pa.bool_())
    texts = pa.array(values, pa.large_string())
    return TEMPORAL[kind](texts) if kind in TEMPORAL else texts


def _contradiction(table: str, column: str, line: int, expected: str, value: object) -> InputInvalid:
    return InputInvalid(table, f"the manifest says {expected}, found {shorten(value)}", line=line, column=column)


def _integer(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, Decimal) and value.is_finite() and value.adjusted() < MOST_INTEGER_DIGITS:
        whole = int(value)
        if whole == value:
            return whole
    raise _Unfit("a whole number")


def _number(value: object) -> int | Decimal | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, Decimal) and value.is_finite():
        try:
            return _integer(value)
        except _Unfit:
            return value
    if value == "NaN" or (isinstance(value, float) and math.isnan(value)):
        return None
    raise _Unfit("a number")


def _decimal(value: object) -> int | Decimal | None:
    return _number(Decimal(value) if isinstance(value, str) and _NUMBER_TEXT.fullmatch(value) else value)


def _double(value: object) -> float:
    if isinstance(value, float):
        return value
    if isinstance(value, str) and value in _SPECIAL_DOUBLES:
        return _SPECIAL_DOUBLES[value]
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
        raise _Unfit("a number that fits a double")
    raise _Unfit("a number")


def _boolean(value: object) -> bool:
    if isinstance(value, (bool, int, Decimal)) and value in (0, 1):
        return bool(value)
    raise _Unfit("true or false")


def _text(value: object) -> str:
    if isinstance(value, bytes):  # of a columnar file; valid UTF-8 has become text before
        raise _Unfit("text in UTF-8")
    return value if isinstance(value, str) else json_text(value)


def _iso(expected: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if isinstance(value, str):
            return value
        raise _Unfit(expected)

    return check


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_ONE: dict[Kind, Callable[[object], Any]] = {
    Kind.INTEGER: _integer,
    Kind.NUMBER: _number,
    Kind.FLOAT: _double,
    Kind.DECIMAL: _decimal,
    Kind.BOOLEAN: _boolean,
    Kind.TEXT: _text,
    Kind.JSON_TEXT: _text,
    Kind.DATE: _iso("a date such as 2024-01-15"),
    Kind.DATETIME: _iso("a date-time such as 2024-01-15T10:30:00"),
    Kind.INSTANT: _iso("a date-time such as 2024-01-15T10:30:00Z"),
}
