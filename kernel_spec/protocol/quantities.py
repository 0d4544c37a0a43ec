"""Sizes such as ``1GiB`` and durations such as ``5m``, as settings, environment variables and options have them."""

from __future__ import annotations

import math
import re
from decimal import Decimal

SIZE_FORMS = "a number of bytes or a size such as 512MB or 1GiB"
DURATION_FORMS = "a number of {} or a duration such as 30s, 5m, 1h30m or 7d"

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([kmgtp]?i?b)", re.IGNORECASE)
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(ms|min|s|m|h|d) *")

#: Bytes of each unit; a single letter is not among them, because tools disagree on whether ``1G`` is 10^9 or 2^30.
_SIZE_UNITS = {"b": 1} | {
    f"{letter}{ending}": base**power
    for power, letter in enumerate("kmgtp", 1)
    for ending, base in (("b", 1000), ("ib", 1024))
}
_SIZE_NAMES = {"b": "B", "kb": "kB", "kib": "KiB"}

#: Milliseconds of each unit, the longest first.
_DURATION_UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}


def parse_bytes(text: str) -> int:
    """Return the bytes of a size; a fraction of a byte is cut off.

    Parameters
    ----------
    text : str
        A whole number of bytes, or a number with a unit: powers of 1000 (``kB``, ``MB``, ``GB``, ``TB``, ``PB``) or
        of 1024 (``KiB``, ``MiB``, ``GiB``, ``TiB``, ``PiB``), in upper or lower case.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        The text is not a size; the error names the accepted forms.
    """
    try:
        return int(text)
    except ValueError:
        found = _SIZE.fullmatch(text.strip())
    unit = _SIZE_UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise ValueError(f"expected {SIZE_FORMS}, not {text!r}")
    return int(Decimal(found[1]) * unit)


def parse_seconds(text: str, plain_unit: str = "seconds") -> float:
    """Return the seconds of a duration.

    Parameters
    ----------
    text : str
        A number without a unit, or numbers with the units ``d``, ``h``, ``m`` or ``min``, ``s`` and ``ms``, each at
        most once and in this order.
    plain_unit : {"seconds", "minutes"}
        Unit of a number without one.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        The text is not a duration; the error names the accepted forms.
    """
    try:
        number = float(text) * (60 if plain_unit == "minutes" else 1)
    except ValueError:
        number = _seconds_with_units(text.strip())
    if math.isnan(number):
        raise ValueError(f"expected {DURATION_FORMS.format(plain_unit)}, not {text!r}")
    return number


def _seconds_with_units(text: str) -> float:
    """Return the seconds of a duration with units, NaN for another text."""
    parts = [(Decimal(number), unit.replace("min", "m")) for number, unit in _DURATION_PART.findall(text)]
    order = list(_DURATION_UNITS)
    places = [order.index(unit) for _, unit in parts]
    if not parts or _DURATION_PART.sub("", text) or places != sorted(set(places)):
        return math.nan
    return float(sum(number * _DURATION_UNITS[unit] for number, unit in parts) / 1000)


def bytes_text(size_bytes: int) -> str:
    """Return a size in the largest unit that gives a whole number, as `parse_bytes` takes it."""
    exact = [(unit, name) for name, unit in _SIZE_UNITS.items() if size_bytes % unit == 0 and size_bytes]
    unit, name = max(exact, default=(1, ""))
    label = _SIZE_NAMES.get(name, name[:-2].upper() + "iB" if name.endswith("ib") else name.upper())
    return f"{size_bytes // unit}{label if unit > 1 else ''}"


def seconds_text(seconds: float) -> str:
    """Return a duration with its units, as `parse_seconds` takes it."""
    left = round(seconds * 1000) if math.isfinite(seconds) else 0
    if left / 1000 != seconds or left <= 0:
        return f"{seconds:g}"
    parts = []
    for name, unit in _DURATION_UNITS.items():
        if count := left // unit:
            parts.append(f"{count}{name}")
            left %= unit
    return "".join(parts)
