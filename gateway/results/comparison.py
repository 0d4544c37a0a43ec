"""Compare two results: columns and rows that were added, removed or changed."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from gateway.results.result_file import type_name

__all__ = ["CellChange", "Comparison", "ComparisonError", "compare"]

EXAMPLES = 5
#: A float beyond this has no fraction, though the value that it represents may have one (IEEE 754, binary64).
EXACT_FLOATS = 2.0**53

_Row = tuple[Any, ...]


class ComparisonError(Exception):
    """Two tables cannot be compared by the given key; the text says why."""


@dataclass(frozen=True, slots=True)
class CellChange:
    """A cell whose value differs: the values of the key, the column, the value before and after."""

    key: tuple[Any, ...]
    column: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences between two tables.

    Attributes
    ----------
    columns_added, columns_removed : tuple of str
    types_changed : dict
        Column to its types before and after, without width and unit.
    rows_added, rows_removed : int
    rows_changed : int or None
        Rows with the same key whose other cells differ; None when no key was given.
    cells_changed : dict
        Column to the number of its cells that differ; empty when no key was given.
    examples : tuple of CellChange
        At most five.
    """

    columns_added: tuple[str, ...]
    columns_removed: tuple[str, ...]
    types_changed: dict[str, tuple[str, str]]
    rows_added: int
    rows_removed: int
    rows_changed: int | None = None
    cells_changed: dict[str, int] = field(default_factory=dict)
    examples: tuple[CellChange, ...] = ()

    @property
    def is_same(self) -> bool:
        """Whether there is no difference but for types."""
        return not (
            self.columns_added or self.columns_removed or self.rows_added or self.rows_removed or self.rows_changed
        )


def compare(before: pa.Table, after: pa.Table, key: Sequence[str], tolerance: float) -> Comparison:
    """Compare two tables by the columns that both have.

    Parameters
    ----------
    before : pyarrow.Table
        The earlier result.
    after : pyarrow.Table
        The later result.
    key : sequence of str
        Columns that identify a row. Without a key, rows are matched as a whole and in any order, so that a row with
        one changed cell counts as removed and added.
    tolerance : float
        Relative difference up to which two numbers are the same, unless both are whole. Without a key, numbers with
        a fraction are also the same if they are when rounded to as many significant digits.

    Returns
    -------
    Comparison

    Raises
    ------
    ComparisonError
        A column of the key is missing, or two rows have the same key.
    """
    names = [name for name in after.column_names if name in before.column_names]
    kinds = [(name, *(type_name(table.schema.field(name).type) for table in (before, after))) for name in names]
    # a column without any value has no type in CSV and JSON lines
    types = {name: (old, new) for name, old, new in kinds if old != new and "null" not in (old, new)}
    added = tuple(name for name in after.column_names if name not in before.column_names)
    removed = tuple(name for name in before.column_names if name not in after.column_names)
    old, new = _frame(before, names), _frame(after, names)
    if not key:
        (was, old_rows), (now, new_rows) = _whole_rows(old, tolerance), _whole_rows(new, tolerance)
        gone, come = (was - now), (now - was)
        alike = _alike(_rows(gone, old_rows), _rows(come, new_rows), tolerance)
        return Comparison(added, removed, types, come.total() - alike, gone.total() - alike)
    for name in key:
        if name not in names:
            raise ComparisonError(f"the key column {name!r} is not in both results")
    old, new = _by_key(old, key, "earlier"), _by_key(new, key, "later")
    common = new.index.intersection(old.index, sort=False)
    changes = _cell_changes(old.loc[common], new.loc[common], tolerance)
    return Comparison(
        added,
        removed,
        types,
        len(new) - len(common),
        len(old) - len(common),
        int(changes.any(axis=1).sum()) if len(changes.columns) else 0,
        {str(name): int(count) for name, count in changes.sum().items() if count},
        tuple(_examples(old.loc[common], new.loc[common], changes)),
    )


def _frame(table: pa.Table, names: list[str]) -> pd.DataFrame:
    """Return the columns as Python values, which compare across the types of different file formats."""
    columns = {name: _plain(table.column(name)) for name in names}
    return pd.DataFrame(columns, range(table.num_rows), names, dtype=object)


def _plain(column: pa.ChunkedArray) -> list[Any]:
    return [_hashable(value) for value in column.to_pylist()]


def _hashable(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return None
    return repr(value) if isinstance(value, list | dict) else value


def _whole_rows(frame: pd.DataFrame, tolerance: float) -> tuple[Counter[_Row], dict[_Row, _Row]]:
    """Return how often there is each row, with its numbers rounded, and one that is not rounded for each."""
    if not len(frame.columns):
        return Counter({(): len(frame)}), {(): ()}
    digits = max(1, round(-np.log10(tolerance))) if tolerance > 0 else 17
    rows = list(zip(*(frame[name] for name in frame.columns), strict=True))
    rounded = [tuple([_rounded(value, digits) for value in row]) for row in rows]
    return Counter(rounded), dict(zip(rounded, rows, strict=True))


def _rows(counted: Counter[_Row], originals: Mapping[_Row, _Row]) -> list[_Row]:
    return [originals[row] for row in counted.elements()]


def _alike(gone: Sequence[_Row], come: Sequence[_Row], tolerance: float) -> int:
    """Return how many of these rows are the same: two numbers as close as can be may be rounded apart."""
    groups: defaultdict[_Row, tuple[list[_Row], list[_Row]]] = defaultdict(lambda: ([], []))
    for side, rows in enumerate((gone, come)):
        for row in rows:
            others = tuple([_is_number(value) or value for value in row])
            groups[others][side].append(tuple([value for value in row if _is_number(value)]))
    count = 0
    for olds, news in groups.values():
        before, after = sorted(olds), sorted(news)
        while before and after:
            if all(_same(old, new, tolerance) for old, new in zip(before[-1], after[-1], strict=True)):
                count += 1
                before.pop(), after.pop()
            else:
                (before if before[-1] > after[-1] else after).pop()
    return count


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, bool) or not _is_number(value) or _is_whole(value):
        return value
    return float(f"{float(value):.{digits}g}")


def _is_whole(number: Any) -> bool:
    """Return whether a number is compared exactly: ids of more digits than the tolerance must not become the same."""
    if isinstance(number, Decimal):  # `%` fails beyond the context's 28 digits
        return number == number.to_integral_value()
    return not number % 1 and (not isinstance(number, float) or abs(number) < EXACT_FLOATS)


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, str | bytes)


def _by_key(frame: pd.DataFrame, key: Sequence[str], which: str) -> pd.DataFrame:
    columns = [frame[name] for name in key]
    labels = list(zip(*columns, strict=True)) if len(columns) > 1 else columns[0]
    # not set_index(), which infers types: it warns about dates, and says np.int64(1) for 1
    indexed = frame.drop(columns=list(key)).set_axis(pd.Index(labels, dtype=object, tupleize_cols=False))
    if not indexed.index.is_unique:
        first = indexed.index[indexed.index.duplicated()][0]
        raise ComparisonError(f"two rows of the {which} result have the same key {', '.join(key)}: {first!r}")
    return indexed


def _cell_changes(old: pd.DataFrame, new: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    """Return a frame of booleans: whether each cell differs."""
    return pd.DataFrame(
        {name: [not _same(b, a, tolerance) for b, a in zip(old[name], new[name], strict=True)] for name in new.columns},
        index=new.index,
        dtype=bool,
    )


def _same(before: Any, after: Any, tolerance: float) -> bool:
    if before is None or after is None:
        return before is after
    if isinstance(before, bool) or isinstance(after, bool) or not (_is_number(before) and _is_number(after)):
        return bool(before == after)
    if before == after or (_is_whole(before) and _is_whole(after)):
        return bool(before == after)
    return math.isclose(float(before), float(after), rel_tol=tolerance)


def _examples(old: pd.DataFrame, new: pd.DataFrame, changes: pd.DataFrame) -> list[CellChange]:
    found: list[CellChange] = []
    for row in np.flatnonzero(changes.to_numpy().any(axis=1))[:EXAMPLES].tolist() if len(changes.columns) else ():
        label = new.index[row]
        for place in np.flatnonzero(changes.iloc[row].to_numpy()).tolist():
            name = str(changes.columns[place])
            values = old.iloc[row, place], new.iloc[row, place]
            key = label if isinstance(label, tuple) else (label,)
            found.append(CellChange(tuple(_hashable(value) for value in key), name, *values))
    return found[:EXAMPLES]
