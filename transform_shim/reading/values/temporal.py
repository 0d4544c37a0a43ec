"""ISO texts to dates, clock readings and instants, a column at a time.

Metabase sends a DATE as midnight and a zone-less TIMESTAMP as its clock reading, both with the report zone's offset
attached (first builds: bare ISO). There the offset means nothing; only zoned types name an instant by it.
"""

from __future__ import annotations

import datetime as dt
import re

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["NotTemporal", "to_clock", "to_dates", "to_instants", "to_microseconds"]

#: An offset at the end of a date-time, perhaps followed by the zone's name as Java writes it.
_OFFSET = r"(?:Z|[+-]\d\d(?::?\d\d){0,2})(?:\[[^\]]*\])?$"
_SECONDS_OFFSET = re.compile(r"([+-])(\d\d):(\d\d):(\d\d)$")
_DATE_CHARS = 10  # YYYY-MM-DD
_SECONDS_Z_CHARS = 20  # YYYY-MM-DDTHH:MM:SSZ
#: All that may follow a date.
_TAIL = re.compile(r"(?:[T ]\d\d(?::\d\d(?::\d\d(?:\.\d{1,9})?)?)?)?(?:" + _OFFSET.removesuffix("$") + ")?", re.ASCII)
_ISO = re.compile(r"\d{4}-\d\d-\d\d" + _TAIL.pattern, re.ASCII)
_EXPECTED = {
    "date": "a date such as 2024-01-15",
    "clock": "a date-time such as 2024-01-15T10:30:00",
    "instant": "a date-time such as 2024-01-15T10:30:00Z",
}
#: Digits below microseconds, after a point and six digits.
_BELOW_MICROSECONDS = r"(\.\d{6})\d{1,3}"


class NotTemporal(ValueError):
    """A text is not a date or date-time; ``index`` is its position in the column."""

    def __init__(self, index: int, text: str, expected: str) -> None:
        self.index, self.text, self.expected = index, text, expected
        super().__init__(f"{text!r} at {index} is not {expected}")


def to_dates(texts: pa.Array) -> pa.Array:
    """Return the calendar date of each text, as date32.

    The time of day is dropped even if it is not midnight: where daylight saving begins at midnight, the day
    starts at 01:00 and the database's DATE arrives so.
    """
    try:
        dates = pc.utf8_slice_codeunits(texts, 0, _DATE_CHARS).cast(pa.date32())
    except pa.ArrowInvalid:
        raise _first_bad(texts, "date", pa.date32()) from None
    # a column has a few tails, such as T00:00:00Z
    for tail in pc.unique(pc.binary_replace_slice(texts, 0, _DATE_CHARS, "")).to_pylist():
        if tail is not None and not _TAIL.fullmatch(tail):
            raise _first_bad(texts, "date", pa.date32())
    return dates


def to_clock(texts: pa.Array) -> pa.Array:
    """Return the clock reading of each text: timestamp without zone, in microseconds unless digits need nanoseconds.

    If no timestamp holds all of them, the result has texts for `to_microseconds`.
    """
    return _parse(_without_offset(texts), texts, "clock", None)


def to_instants(texts: pa.Array) -> pa.Array:
    """Return the instant of each text, in UTC; a text without offset is taken as UTC.

    If no timestamp holds all of them, the result has texts for `to_microseconds`.
    """
    try:
        return texts.cast(pa.timestamp("us", "UTC"))
    except pa.ArrowInvalid:
        pass
    texts_in_utc = pc.replace_substring_regex(texts, r"\[[^\]]*\]$", "")
    texts_in_utc = _with_whole_minutes(texts_in_utc)
    texts_in_utc = pc.if_else(
        pc.equal(pc.binary_length(texts_in_utc), _DATE_CHARS), _add(texts_in_utc, "T00:00:00"), texts_in_utc
    )
    has_offset = pc.match_substring_regex(texts_in_utc, _OFFSET)
    return _parse(pc.if_else(has_offset, texts_in_utc, _add(texts_in_utc, "Z")), texts, "instant", "UTC")


def _with_whole_minutes(texts: pa.Array) -> pa.Array:
    """Rewrite offsets with seconds, which Arrow does not take: +00:19:32, as Java writes for Amsterdam before 1937."""
    found = pc.fill_null(pc.match_substring_regex(texts, _SECONDS_OFFSET.pattern), False)
    if not pc.any(found).as_py():
        return texts
    return pa.array([text and _shifted(text) for text in texts.to_pylist()], texts.type)


def _shifted(text: str) -> str:
    """Return a text with such an offset as its instant in UTC; any other unchanged."""
    offset = _SECONDS_OFFSET.search(text)
    if offset is None:
        return text
    sign, hours, minutes, seconds = offset[1], *map(int, offset.groups()[1:])
    shift = dt.timedelta(hours=hours, minutes=minutes, seconds=seconds)
    clock, point, fraction = text[: offset.start()].partition(".")
    try:
        instant = dt.datetime.fromisoformat(clock) - (shift if sign == "+" else -shift)
    except (ValueError, OverflowError):
        return text
    return f"{instant.isoformat()}{point}{fraction}Z"


def _without_offset(texts: pa.Array) -> pa.Array:
    lengths = pc.min_max(pc.binary_length(texts))
    shortest, longest = lengths["min"].as_py(), lengths["max"].as_py()
    if longest is None or longest <= _DATE_CHARS:
        return texts
    if shortest == longest == _SECONDS_Z_CHARS and pc.all(pc.ends_with(texts, "Z")).as_py():
        return pc.utf8_slice_codeunits(texts, 0, _SECONDS_Z_CHARS - 1)  # four times as fast as the pattern
    stripped = pc.replace_substring_regex(texts, _OFFSET, "")
    if shortest > _DATE_CHARS:
        return stripped
    # "-15" of a bare 2024-01-15 looks like an offset
    return pc.if_else(pc.greater(pc.binary_length(texts), _DATE_CHARS), stripped, texts)


def _parse(cleaned: pa.Array, texts: pa.Array, what: str, zone: str | None) -> pa.Array:
    for unit in ("us", "ns"):
        try:
            return cleaned.cast(pa.timestamp(unit, zone))
        except pa.ArrowInvalid:  # seven digits and more need nanoseconds, which end in 2262
            continue
    try:  # unless those digits are zeros
        return pc.replace_substring_regex(cleaned, r"(\.\d{6})0+", r"\1").cast(pa.timestamp("us", zone))
    except pa.ArrowInvalid:
        pass
    try:
        to_microseconds(cleaned, zone)
    except pa.ArrowInvalid:
        shortened = pc.replace_substring_regex(cleaned, _BELOW_MICROSECONDS, r"\1")
        raise _first_bad(texts, what, pa.timestamp("us", zone), shortened) from None
    return cleaned  # 9999-12-31T23:59:59.9999999: SQL Server's end of time


def to_microseconds(texts: pa.Array, zone: str | None) -> tuple[pa.Array, int]:
    """Return texts that `to_clock` or `to_instants` returned as microseconds, and how many of them lost digits."""
    shortened = pc.replace_substring_regex(texts, _BELOW_MICROSECONDS, r"\1")
    lost = pc.sum(pc.match_substring_regex(texts, r"\.\d{6}0*[1-9]")).as_py() or 0
    return shortened.cast(pa.timestamp("us", zone)), lost


def _first_bad(texts: pa.Array, what: str, kind: pa.DataType, cleaned: pa.Array | None = None) -> NotTemporal:
    """Find the text that does not parse."""
    prepared = pc.utf8_slice_codeunits(texts, 0, _DATE_CHARS) if cleaned is None else cleaned
    for index, (text, ready) in enumerate(zip(texts, prepared, strict=True)):
        if text.is_valid and not (_ISO.fullmatch(text.as_py()) and _casts(ready, kind)):
            return NotTemporal(index, text.as_py(), _EXPECTED[what])
    return NotTemporal(0, "", _EXPECTED[what])


def _casts(text: pa.Scalar, kind: pa.DataType) -> bool:
    try:
        text.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _add(texts: pa.Array, suffix: str) -> pa.Array:
    return pc.binary_join_element_wise(texts, pa.scalar(suffix, texts.type), pa.scalar("", texts.type))
