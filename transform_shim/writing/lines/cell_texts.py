"""Columns to text, cell by cell but never in Python: what JSON and CSV lines are put together from.

Arrow's casts render numbers (the shortest digits that read back equal); strings are only touched where a byte needs
escaping.
"""

from __future__ import annotations

import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transform_shim.core.array_buffers import Mask, null_mask, numbers, used_bytes
from transform_shim.core.decimals import MOST_DIGITS
from transform_shim.core.errors import OutputInvalid

__all__ = [
    "EMPTY",
    "TEXT",
    "cell_texts",
    "check_years",
    "double_digits",
    "escape_json",
    "needs_json_escape",
    "quote_csv",
]

TEXT = pa.large_string()
EMPTY = pa.scalar("", TEXT)
#: Arrow renders whole doubles below this without an exponent, and without a point.
_PLAIN_DOUBLE_END = 1e10
#: A 32-bit float from here on is whole, and its shortest digits, 123456790 for 123456792, are those of another number.
_NARROW_WHOLE_BEGIN = 2.0**24
_SHORT_ESCAPES = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r"}
#: Python's own context rounds to 28 digits, or to what user code has set.
_ALL_DIGITS = decimal.Context(prec=MOST_DIGITS, traps=[decimal.Inexact])
#: First and last day that text with four digits for the year can represent.
_FIRST_DAY, _LAST_DAY = "0001-01-01", "9999-12-31"


def cell_texts(array: pa.Array) -> pa.Array:
    """Render a canonical array, other than texts and floats, as text; null stays null."""
    kind = array.type
    if pa.types.is_decimal(kind):
        return _decimals(array)
    if pa.types.is_timestamp(kind):
        return _timestamps(array)
    if pa.types.is_time(kind):
        return _trim_fraction(array.cast(TEXT))
    return array.cast(TEXT)


def double_digits(array: pa.Array) -> tuple[pa.Array, Mask]:
    """Return the shortest digits of doubles, as texts or whole numbers, and which of them need ``.0`` added.

    Arrow leaves the point out of whole numbers. NaN and infinities, which JSON does not have, are null.
    """
    values = numbers(array)
    with np.errstate(invalid="ignore"):  # the values of nulls are arbitrary
        is_known = np.isfinite(values)
        is_whole = (np.trunc(values) == values) & (np.abs(values) < _PLAIN_DOUBLE_END)
    if array.null_count:
        is_known &= ~null_mask(array)
    if not is_known.all():
        is_whole &= is_known
        array = pa.array(values, array.type, mask=~is_known)
    is_integer = (is_whole == is_known).all() and not (np.signbit(values) & (values == 0)).any()
    if is_integer:
        return array.cast(pa.int64()), is_whole
    texts = array.cast(TEXT)
    if pa.types.is_float32(array.type):
        is_wide = np.abs(values) >= _NARROW_WHOLE_BEGIN
        if is_wide.any():
            texts = pc.if_else(pa.array(is_wide), array.cast(pa.float64()).cast(TEXT), texts)
    return texts, is_whole


def _decimals(array: pa.Array) -> pa.Array:
    texts = array.cast(TEXT)
    if array.type.scale == 0:
        return texts
    if pc.any(pc.match_substring(texts, "E")).as_py():  # an exponent's zeros must not be trimmed
        return _plain_decimals(array)
    return _trim_fraction(texts)


def _plain_decimals(array: pa.Array) -> pa.Array:
    """Render numbers with an exponent, such as 1E-10: rare enough for Python."""
    rendered = [None if value is None else str(value.normalize(_ALL_DIGITS)) for value in array.to_pylist()]
    return pa.array(rendered, TEXT)


def _trim_fraction(texts: pa.Array) -> pa.Array:
    """Trim the zeros at the end of a fraction; texts without a point stay as they are."""
    with_point = pc.match_substring(texts, ".")
    if pc.all(with_point).as_py():
        return pc.utf8_rtrim(pc.utf8_rtrim(texts, characters="0"), characters=".")
    return pc.if_else(with_point, pc.utf8_rtrim(pc.utf8_rtrim(texts, characters="0"), characters="."), texts)


def _timestamps(array: pa.Array) -> pa.Array:
    """Render ISO 8601 with T; zoned ones in UTC with Z. Fractions only where there are any."""
    zone = array.type.tz
    clock = array.cast(pa.timestamp(array.type.unit))
    try:
        texts = clock.cast(pa.timestamp("s")).cast(TEXT)
    except pa.ArrowInvalid:  # some have fractions
        texts = _trim_fraction(clock.cast(TEXT))
    texts = pc.binary_replace_slice(texts.cast(pa.large_binary()), 10, 11, b"T").cast(TEXT)
    return texts if zone is None else pc.binary_join_element_wise(texts, pa.scalar("Z", TEXT), EMPTY)


def check_years(array: pa.Array, column: str, first_row: int) -> None:
    """Refuse dates and date-times that text with four digits for the year cannot represent.

    Raises
    ------
    OutputInvalid
        For one outside of the years 1 to 9999.
    """
    kind = array.type
    if pa.types.is_time(kind):
        return
    extremes = pc.min_max(array)
    if not extremes["min"].is_valid:
        return
    unit: Any = "D" if pa.types.is_date(kind) else kind.unit
    if unit == "ns":  # ends in 2262
        return
    first = int(np.datetime64(_FIRST_DAY, unit).astype(np.int64))
    end = int((np.datetime64(_LAST_DAY, "D") + 1).astype(f"M8[{unit}]").astype(np.int64))
    ticks = array.view(pa.int32() if pa.types.is_date(kind) else pa.int64())
    bad = pc.or_(pc.less(ticks, first), pc.greater_equal(ticks, end)).fill_null(False)
    row = pc.index(bad, True).as_py()
    if row >= 0:
        value = np.datetime64(ticks[row].as_py(), unit)
        raise OutputInvalid(f"{value} lies outside of the years 1 to 9999", column=column, row=first_row + row)


def needs_json_escape(array: pa.Array) -> bool:
    """Return whether any text holds a quote, a backslash or a control character."""
    used = used_bytes(array)
    return bool(len(used) and (used.min() < 0x20 or (used == ord('"')).any() or (used == ord("\\")).any()))


def escape_json(array: pa.Array) -> pa.Array:
    """Escape texts for the inside of a JSON string."""
    if not needs_json_escape(array):
        return array
    used = used_bytes(array)
    controls = np.unique(used[used < 0x20])
    array = pc.replace_substring(array, "\\", "\\\\")
    array = pc.replace_substring(array, '"', '\\"')
    for code in controls.tolist():
        array = pc.replace_substring(array, chr(code), _SHORT_ESCAPES.get(code, f"\\u{code:04x}"))
    return array


def quote_csv(array: pa.Array) -> pa.Array:
    """Quote texts as CSV fields where they hold commas, quotes or line ends."""
    used = used_bytes(array)
    if not any((used == ord(mark)).any() for mark in ',"\r\n'):
        return array
    quoted = pc.replace_substring(array, '"', '""')
    mark = pa.scalar('"', TEXT)
    quoted = pc.binary_join_element_wise(mark, quoted, mark, EMPTY)
    return pc.if_else(pc.match_substring_regex(array, '[,"\r\n]'), quoted, array)
