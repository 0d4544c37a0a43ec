"""Exact numbers: decimals of the least precision and scale that hold them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc

from transform_shim.core.errors import NoType, cut

__all__ = [
    "MOST_DIGITS",
    "WIDE",
    "TooManyDigits",
    "arrow_decimal",
    "decimal_array",
    "decimal_type",
    "digits_of",
    "engine_decimal",
    "tighten",
    "to_doubles",
    "without_spare_digits",
]

#: Digits of Arrow's largest decimal.
MOST_DIGITS = 76
_MOST_DIGITS_128 = 38
_INT64_DIGITS = 19
#: Digits of the largest factors whose product fits 128 bits (38 digits), and 256 bits (76).
_FACTOR_DIGITS_128, _FACTOR_DIGITS_256 = 18, 37
#: Any 15 digits survive the round trip through a double (IEEE 754: DBL_DIG).
_DOUBLE_DIGITS = 15
#: Digits after the point with which a fast parsed number is accepted. A number that has overflowed has more of them,
#: but for one in 10^12.
_PARSED_SCALE = 20
#: The type of parsed decimals before their own precision is known.
WIDE = pa.decimal256(MOST_DIGITS, 38)


def decimal_type(precision: int, scale: int) -> pa.DataType:
    """Return the smaller Arrow decimal that has this many digits."""
    precision = max(precision, scale, 1)
    return pa.decimal128(precision, scale) if precision <= _MOST_DIGITS_128 else pa.decimal256(precision, scale)


def tighten(values: pa.Array) -> pa.Array:
    """Cast a decimal array to the least scale and precision that lose nothing.

    Raises
    ------
    pyarrow.ArrowInvalid
        If Arrow's parser may have let 256 bits overflow, as it does with 39 digits before the point and more; the
        caller then parses exactly.
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
        raise pa.ArrowInvalid("more digits than the fast parser reads reliably")
    return values.cast(decimal_type(whole_digits + low, low))


def without_spare_digits(values: pa.Array) -> pa.Array:
    """Cast a decimal array to the precision that its values need; the scale stays."""
    extremes = pc.min_max(values)
    whole_digits = max(_whole_digits(extremes[end].as_py()) for end in ("min", "max"))
    return values.cast(decimal_type(whole_digits + values.type.scale, values.type.scale))


def digits_of(types: Iterable[pa.DataType]) -> tuple[int, int]:
    """Return how many digits before and after the point hold every value of these decimal and integer types.

    64-bit integers count 19 digits.
    """
    whole, scale = 0, 0
    for kind in types:
        if pa.types.is_decimal(kind):
            whole, scale = max(whole, kind.precision - kind.scale), max(scale, kind.scale)
        else:
            whole = max(whole, _INT64_DIGITS)
    return whole, scale


def arrow_decimal(whole: int, scale: int) -> pa.DataType:
    """Return the decimal with which Arrow computes correctly.

    Arrow rounds a value that carries into a digit more than its type has to 0, gives a product the digits of both
    factors and one more, and lets a sum of more than 38 digits (76 in 256 bits) wrap around. So the type always has one
    digit more than the values need, and 256 bits where a product would not fit 128 bits.

    Raises
    ------
    TooManyDigits
        If the values need more than 76 digits.
    """
    if whole + scale > MOST_DIGITS:
        raise TooManyDigits(whole + scale, MOST_DIGITS, "Arrow")
    if whole + scale + 1 <= _FACTOR_DIGITS_128:
        return pa.decimal128(_FACTOR_DIGITS_128, scale)
    return pa.decimal256(min(max(_FACTOR_DIGITS_256, whole + scale + 1), MOST_DIGITS), scale)


def engine_decimal(whole: int, scale: int) -> pa.DataType:
    """Return the decimal for Polars and DuckDB, which have 128 bits alone and raise an error at an overflow.

    Raises
    ------
    TooManyDigits
        If the values need more than 38 digits.
    """
    if whole + scale > _MOST_DIGITS_128:
        raise TooManyDigits(whole + scale, _MOST_DIGITS_128, "Polars and DuckDB")
    return pa.decimal128(_MOST_DIGITS_128, scale)


class TooManyDigits(NoType):
    """An engine has no decimal for the values of a column."""

    def __init__(self, digits: int, most: int, engine: str) -> None:
        needed, other = (digits, "pa.Table") if digits <= MOST_DIGITS else (f"more than {MOST_DIGITS}", "pd.DataFrame")
        limit = f"decimals of {engine} have at most {most}"
        super().__init__(f"the numbers need {needed} digits, and {limit}; annotate the parameter as {other}")


def decimal_array(values: list[Decimal | int | None]) -> pa.Array:
    """Return exact numbers as an Arrow decimal.

    Raises
    ------
    OverflowError
        If one decimal type cannot hold them all; its argument is the index of the first that breaks it.
    """
    whole, scale = 1, 0
    for index, value in enumerate(values):
        if not value:
            continue
        number = Decimal(value)
        exponent = number.as_tuple().exponent
        scale = max(scale, -exponent if isinstance(exponent, int) else 0)
        whole = max(whole, _whole_digits(number))
        if whole + scale > MOST_DIGITS:
            raise OverflowError(index)
    # a zero may have an exponent, 0E+5, for which Arrow wants as many digits
    numbers = [None if v is None else Decimal(v or 0) for v in values]
    return pa.array(numbers, type=decimal_type(whole + scale, scale))


def to_doubles(values: pa.Array) -> tuple[pa.Array, int]:
    """Return decimals, or texts of numbers that no decimal holds, as doubles, and how many of them were rounded.

    A value is rounded if the shortest text of its double is another number: 0.1 is not, 1234567890.1234567890 is.

    Raises
    ------
    NoType
        If a number is beyond the range of doubles.
    """
    if pa.types.is_large_string(values.type):
        return _texts_to_doubles(values)
    doubles = values.cast(pa.string()).cast(pa.float64())  # by text, because Arrow's own cast rounds twice
    if values.type.precision <= _DOUBLE_DIGITS or values.null_count == len(values):
        return doubles, 0
    try:
        shortest = doubles.cast(pa.string()).cast(pa.decimal256(MOST_DIGITS, values.type.scale))
    except pa.ArrowInvalid:  # 9.99… of 76 digits has become 10
        pairs = zip(values.to_pylist(), doubles.to_pylist(), strict=True)
        return doubles, sum(value is not None and Decimal(repr(double)) != value for value, double in pairs)
    return doubles, int(pc.sum(pc.not_equal(shortest, values)).as_py() or 0)


def _texts_to_doubles(texts: pa.Array) -> tuple[pa.Array, int]:
    doubles: list[float | None] = []
    rounded = 0
    for text in texts.to_pylist():
        double = None if text is None else float(text)
        if double is not None:
            if math.isinf(double):
                raise NoType(f"{cut(text)} is beyond the range of float64")
            rounded += Decimal(repr(double)) != Decimal(text)
        doubles.append(double)
    return pa.array(doubles, pa.float64()), rounded


def _whole_digits(value: Decimal | None) -> int:
    return 0 if not value else max(value.adjusted() + 1, 0)
