"""Images and tables that a job displayed, and the profile of its result, as values that a notebook shows."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

__all__ = [
    "ColumnProfile",
    "Display",
    "Displays",
    "Image",
    "Profile",
    "StageSpan",
    "Table",
    "displays_from",
    "read_displays",
]

MediaType = Literal["image/png", "image/svg+xml"]


@dataclass(frozen=True, slots=True)
class Image:
    """An image.

    Attributes
    ----------
    media_type : {'image/png', 'image/svg+xml'}
    data : bytes
        The file.
    text : str
        The displayed object as text.
    """

    media_type: MediaType
    data: bytes
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table, as text by rows.

    Attributes
    ----------
    header, rows : tuple of tuple of str
        The cells by row.
    index_columns : int
        How many columns from the left name the rows.
    """

    header: tuple[tuple[str, ...], ...]
    rows: tuple[tuple[str, ...], ...]
    index_columns: int


@dataclass(frozen=True, slots=True)
class ColumnProfile:
    """One column of a result in figures, as they are shown.

    Attributes
    ----------
    name, base_type : str
    nulls : int
    distinct : int or None
        Number of different values other than null; None for nested columns.
    smallest, largest : str or None
        None where all values are null or have no order.
    quartiles : tuple of str or None
        25 %, 50 % and 75 % quantiles of a column of numbers, by linear interpolation.
    histogram : tuple of int or None
        Numbers of values in bins of equal width from the smallest to the largest of a column of numbers.
    """

    name: str
    base_type: str
    nulls: int
    distinct: int | None = None
    smallest: str | None = None
    largest: str | None = None
    quartiles: tuple[str, ...] | None = None
    histogram: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """Figures about the columns of a result.

    Attributes
    ----------
    rows : int
        Number of rows that were profiled, from the first on.
    columns : tuple of ColumnProfile
    """

    rows: int
    columns: tuple[ColumnProfile, ...]


class StageSpan(NamedTuple):
    """One stage of a job, with its times in seconds; `parent` is the stage that contains it."""

    name: str
    begin: float
    end: float
    parent: str | None = None


Display = Image | Table


class Displays(NamedTuple):
    """The displays of a transform, and the profile of its result, if there is one."""

    shown: tuple[Display, ...] = ()
    profile: Profile | None = None


def displays_from(entries: Iterable[Mapping[str, Any]]) -> Displays:
    """Return displays from the JSON objects that a `Recorder` writes and the gateway has checked.

    Parameters
    ----------
    entries : iterable of mapping
        One object for each display.
    """
    values = [_display(entry) for entry in entries]
    profiles = [each for each in values if isinstance(each, Profile)]
    return Displays(tuple(each for each in values if not isinstance(each, Profile)), profiles[0] if profiles else None)


def read_displays(path: Path) -> Displays:
    """Return the displays in the file of a `Recorder`; none if there is no file.

    Parameters
    ----------
    path : Path
        As given to the recorder.
    """
    if not path.exists():
        return Displays()
    return displays_from(json.loads(line) for line in path.read_bytes().splitlines())


def _display(entry: Mapping[str, Any]) -> Display | Profile:
    if entry["type"] == "image":
        return Image(entry["media_type"], base64.b64decode(entry["data"]), entry["text"])
    if entry["type"] == "profile":
        return Profile(entry["rows"], tuple(_column(column) for column in entry["columns"]))
    return Table(_rows(entry["header"]), _rows(entry["rows"]), entry["index_columns"])


def _column(entry: Mapping[str, Any]) -> ColumnProfile:
    lists = {name: None if entry[name] is None else tuple(entry[name]) for name in ("quartiles", "histogram")}
    return ColumnProfile(**{**entry, **lists})


def _rows(rows: Iterable[Iterable[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(row) for row in rows)
