"""Exact numbers: decimals of the least precision and scale that hold them."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["MOST_DIGITS", "WIDE", "decimal_array", "decimal_type", "double_if_exact", "tighten", "widest"]

#: Digits of Arrow's largest decimal.
MOST_DIGITS = 76
_MOST_DIGITS_128 = 38
#: Any 15 digits survive the way through a double (IEEE 754: DBL_DIG).
_DOUBLE_DIGITS = 15
#: Digits after the point that a number parsed fast may need. One that has overflowed needs them all but once in 10^12.
_PARSED_SCALE = 20
#: What decimals are parsed into before their own precision is known.
WIDE = pa.decimal256(MOST_DIGITS, 38)


def decimal_type(precision: int, scale: int) -> pa.DataType:
    """The smaller Arrow decimal that has this many digits."""
    precision = max(precision, scale, 1)
    return pa.decimal128(precision, scale) if precision <= _MOST_DIGITS_128 else pa.decimal256(precision, scale)


def tighten(values: pa.Array) -> pa.Array:
    """Cast a decimal array to the least scale and precision that lose nothing.

    Raises
    ------
    pyarrow.ArrowInvalid
        If Arrow's parser has let 256 bits overflow, as it does with 39 digits before the point and more: whatever looks
        as if it had is to be read again, exactly.
    """
    low, high = 0, values.type.scale
    while low < high:
        middle = (low + high) // 2
        try:
            values.cast(pa.decimal256(MOST_DIGITS - high + middle, middle))
        except pa.ArrowInvalid:
            low = middle + 1
        else:
            high = middle
    extremes = pc.min_max(values)
    whole_digits = max((_whole_digits(extremes[end].as_py()) for end in ("min", "max")), default=0)
    if whole_digits > _MOST_DIGITS_128 or low > _PARSED_SCALE:
        raise pa.ArrowInvalid("more digits than the parser is to be trusted with")
    return values.cast(decimal_type(whole_digits + low, low))


def widest(types: Iterable[pa.DataType]) -> pa.DataType:
    """The decimal that holds every value of these decimal and integer types; 64-bit integers count 19 digits."""
    whole, scale = 0, 0
    for kind in types:
        if pa.types.is_decimal(kind):
            whole, scale = max(whole, kind.precision - kind.scale), max(scale, kind.scale)
        else:
            whole = max(whole, 19)
    return decimal_type(whole + scale, scale)


def decimal_array(values: list[Decimal | int | None]) -> pa.Array:
    """Exact numbers as an Arrow decimal.

    Raises
    ------
    OverflowError
        If one decimal type cannot hold them all; its argument is the index of the first that breaks it.
    """
    whole, scale = 1, 0
    for index, value in enumerate(values):
        if value is None:
            continue
        number = Decimal(value)
        exponent = number.as_tuple().exponent
        scale = max(scale, -exponent if isinstance(exponent, int) else 0)
        whole = max(whole, _whole_digits(number))
        if whole + scale > MOST_DIGITS:
            raise OverflowError(index)
    return pa.array([None if v is None else Decimal(v) for v in values], type=decimal_type(whole + scale, scale))


def double_if_exact(values: pa.Array) -> pa.Array | None:
    """The decimals as doubles if every one reads back the same, else None.

    "The same" means the text: 0.1 is as good a double as a decimal, 1234567890.1234567890 is not.
    """
    kind = values.type
    doubles = values.cast(pa.string()).cast(pa.float64())  # by text, because Arrow's own cast rounds twice
    if kind.precision <= _DOUBLE_DIGITS or values.null_count == len(values):
        return doubles
    try:
        back = doubles.cast(pa.string()).cast(kind)
    except pa.ArrowInvalid:
        return None
    return doubles if pc.all(pc.equal(back, values)).as_py() is not False else None


def _whole_digits(value: Decimal | None) -> int:
    return 0 if not value else max(value.adjusted() + 1, 0)
