"""Check a result against its contracts while it is written: batch by batch, for every kind of frame.

Arrow's compute functions do it, because every kernel has loaded them. pandera takes 0.35 s of processor time to import,
again in each job with a contract, where a whole job takes 0.02 s; and it needs the result as one frame in memory.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from transform_shim.core.contract import Bound, ColumnRule, Contract
from transform_shim.core.errors import OutputSchemaViolated, shorten
from transform_shim.core.shared_objects import plain_texts
from transform_shim.writing.arrow_types import finite
from transform_shim.writing.frame_source import Batch, OutputFrame

__all__ = ["ContractCheck"]

#: Breaches and rows that a message shows.
_SHOWN_BREACHES = 5
_SHOWN_ROWS = 3
_SHOWN_COLUMNS = 20
#: Nanoseconds hold all of the years between these.
_NS_YEARS = 1677, 2262

_MATCHES: Mapping[str, Sequence[Callable[[pa.DataType], bool]]] = {
    "integer": (pa.types.is_integer, lambda kind: pa.types.is_decimal(kind) and kind.scale <= 0),
    "number": (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
    "text": (pa.types.is_large_string,),
    "boolean": (pa.types.is_boolean,),
    "date": (pa.types.is_date,),
    "datetime": (pa.types.is_timestamp,),
    "time": (pa.types.is_time,),
}


class ContractCheck:
    """The check of one result.

    Parameters
    ----------
    contracts : sequence of Contract
        All of them must hold.
    frame : OutputFrame
        The result that is going to be written.

    Raises
    ------
    OutputSchemaViolated
        A column is missing.
    """

    def __init__(self, contracts: Sequence[Contract], frame: OutputFrame) -> None:
        self._rules = [(name, rule) for contract in contracts for name, rule in contract.columns.items()]
        self._places = {name: place for place, name in enumerate(frame.names)}
        #: Columns whose values must be unique, in parts by the number of their first row.
        self._kept: dict[str, dict[int, pa.Array]] = {name: {} for name, rule in self._rules if rule.unique}
        missing = [name for name, _ in self._rules if name not in self._places]
        has = ", ".join(map(repr, frame.names[:_SHOWN_COLUMNS])) or "no columns"
        _refuse([f"column {name!r} is missing; the result has {has}" for name in dict.fromkeys(missing)])
        self.frame = dataclasses.replace(frame, batches=map(self._checked, frame.batches))

    def finish(self) -> None:
        """Check the rules that need the whole result.

        Raises
        ------
        OutputSchemaViolated
            A value of a unique column is repeated.
        """
        _refuse([text for name, parts in self._kept.items() if (text := _repeated(name, parts))])

    def _checked(self, batch: Batch) -> Batch:
        """Return the batch with the check as a part of its load, which may happen in any thread."""

        def load() -> list[pa.Array]:
            arrays = batch.load()
            breaches = []
            for name, rule in self._rules:
                array = plain_texts(arrays[self._places[name]])
                breaches += list(_breaches(name, rule, array, batch.first_row))
                if rule.unique:
                    self._kept[name][batch.first_row] = array
            _refuse(breaches)
            return arrays

        return Batch(batch.first_row, batch.rows, load)


def _refuse(breaches: Sequence[str]) -> None:
    if breaches:
        more = len(breaches) - _SHOWN_BREACHES
        shown = "; ".join(breaches[:_SHOWN_BREACHES])
        raise OutputSchemaViolated(shown + (f"; and {more} more" if more > 0 else ""))


def _breaches(name: str, rule: ColumnRule, array: pa.Array, first_row: int) -> Iterator[str]:
    if not rule.nullable:
        nulls = finite(array).is_null()
        yield from _broken(name, "nullable false", nulls, array, first_row)
    if rule.type is not None and not _has_type(array.type, rule.type):
        # a column of nulls alone fits each type: pandas and Polars do not know its own
        found = next((word for word in _MATCHES if _has_type(array.type, word)), str(array.type))
        yield from _broken(name, f"type {rule.type}, not {found}", array.is_valid(), array, first_row)
        return
    if rule.min is not None:
        below = _compare(pc.less, operator.lt, array, rule.min)
        yield from _broken(name, f"min {rule.min}", below, array, first_row)
    if rule.max is not None:
        above = _compare(pc.greater, operator.gt, array, rule.max)
        yield from _broken(name, f"max {rule.max}", above, array, first_row)


def _has_type(kind: pa.DataType, word: str) -> bool:
    return any(matches(kind) for matches in _MATCHES[word])


def _broken(name: str, rule: str, broken: pa.Array, array: pa.Array, first_row: int) -> Iterator[str]:
    count = broken.true_count
    if count:
        rows = pc.indices_nonzero(broken).slice(0, _SHOWN_ROWS).to_pylist()
        shown = ", ".join(f"row {first_row + row}: {_shown(array[row])}" for row in rows)
        of_rows = f"{count:,} row{'s' * (count != 1)} of {len(array):,} from row {first_row:,} on"
        yield f"column {name!r}: {rule}: {of_rows} ({shown})"


def _compare(
    of_arrow: Callable[..., pa.Array], of_python: Callable[[Any, Any], bool], array: pa.Array, bound: Bound
) -> pa.Array:
    if isinstance(bound, datetime):
        # Arrow has no common type for a moment with and without zone, and cannot bring the year 9999 to nanoseconds
        unit = "ns" if getattr(array.type, "unit", "") == "ns" and _NS_YEARS[0] < bound.year < _NS_YEARS[1] else "us"
        zoned = array.cast(pa.timestamp(unit, getattr(array.type, "tz", None)), safe=False)
        return of_arrow(zoned.cast(pa.timestamp(unit)), pa.scalar(bound, pa.timestamp(unit)))
    if pa.types.is_floating(array.type):
        # through Decimal, which takes whole numbers of any size; in the column's width, as 0.1 is written in both
        return of_arrow(array, pa.scalar(float(Decimal(bound)), pa.float64()).cast(array.type))
    if isinstance(bound, int) and -(2**63) <= bound < 2**63 and array.type != pa.uint64():
        return of_arrow(array, pa.scalar(bound))
    # exact: Arrow would compare large integers and decimals with a float as floats; and 0.1 means 0.1
    exact = Decimal(repr(bound)) if isinstance(bound, float) else bound
    return pa.array([None if value is None else of_python(value, exact) for value in array.to_pylist()], pa.bool_())


def _repeated(name: str, parts: Mapping[int, pa.Array]) -> str:
    column = pa.chunked_array([finite(parts[first]) for first in sorted(parts)], None if parts else pa.null())
    counts = pc.value_counts(column.drop_null())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if not len(repeated):
        return ""
    value = repeated.field("values")[0]
    rows = pc.indices_nonzero(pc.equal(column, value)).slice(0, _SHOWN_ROWS).to_pylist()
    places = ", ".join(map(str, rows))
    counted = f"{len(repeated):,} value{'s' * (len(repeated) != 1)} repeated"
    return f"column {name!r}: unique: {counted} (rows {places}: {_shown(value)})"


def _shown(scalar: pa.Scalar) -> str:
    value = scalar.as_py()
    return "null" if value is None else str(value) if isinstance(value, date | time) else shorten(value)
