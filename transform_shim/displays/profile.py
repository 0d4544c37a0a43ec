"""The profile of a result: figures about its columns, which page, notebooks and command line show.

The figures are of the output file, which is read back as Metabase reads it, so they hold for every frame kind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from transform_shim.core.notices import warn
from transform_shim.core.table_file import TableFile
from transform_shim.displays.recorder import Recorder
from transform_shim.displays.values import ColumnProfile, Profile
from transform_shim.reading.frame_kinds import load_table
from transform_shim.reading.table_source import TableSource
from transform_shim.writing.column_types import is_numeric

__all__ = ["profile", "record_profile"]

#: Memory of the data that is profiled; of a larger result, only the first rows are profiled.
MOST_PROFILED_BYTES = 64 << 20
HISTOGRAM_BINS = 12
QUARTILES = (0.25, 0.5, 0.75)
TEXT_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class _Ends:
    """Smallest and largest value as texts; None where all values are null or have no order."""

    smallest: str | None = None
    largest: str | None = None


def record_profile(output: TableFile, recorder: Recorder) -> None:
    """Keep the profile of a job's output; one that cannot be made leaves a line in the log.

    Parameters
    ----------
    output : TableFile
        The output with its manifest.
    recorder : Recorder
        Of the job's displays.
    """
    try:
        recorder.profile(profile(output))
    except Exception as error:  # the output is written: only its profile is missing
        warn(f"the result has no profile: {type(error).__name__}: {error}")


def profile(output: TableFile) -> Profile:
    """Return the profile of a table, of its first rows if it is large.

    Parameters
    ----------
    output : TableFile
        The table with its manifest.

    Raises
    ------
    ShimError, OSError
        The table cannot be read.
    """
    source = TableSource(output)
    reader = load_table(source, "arrow_reader").value
    batches, size_bytes = [], 0
    for batch in reader:
        batches.append(batch)
        size_bytes += batch.nbytes
        if size_bytes >= MOST_PROFILED_BYTES:
            break
    table = pa.Table.from_batches(batches, reader.schema)
    return Profile(
        table.num_rows,
        tuple(
            _column(field.name, field.base_type or "", table.column(place)) for place, field in enumerate(source.fields)
        ),
    )


def _column(name: str, base_type: str, column: pa.ChunkedArray) -> ColumnProfile:
    import pyarrow.compute as pc  # few jobs have a profile

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_nested(kind):
        return ColumnProfile(name, base_type, column.null_count)
    distinct = pc.count_distinct(column, mode="only_valid").as_py()
    ends = _Ends()
    if len(column) > column.null_count:
        with contextlib.suppress(OverflowError, ValueError, pa.ArrowException):  # Python ends with the year 9999
            found = pc.min_max(column).as_py()
            ends = _Ends(_text(found["min"]), _text(found["max"]))
    quartiles, histogram = _distribution(column) if is_numeric(kind) else (None, None)
    return ColumnProfile(
        name, base_type, column.null_count, distinct, ends.smallest, ends.largest, quartiles, histogram
    )


def _distribution(column: pa.ChunkedArray) -> tuple[tuple[str, ...] | None, tuple[int, ...] | None]:
    values = column.drop_null().cast(pa.float64(), safe=False).to_numpy()
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    return tuple(_text(float(q)) for q in np.quantile(values, QUARTILES)), _histogram(values)


def _histogram(values: Any) -> tuple[int, ...] | None:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):  # the width of a bin would not be a number
        values = values / 2
    try:
        # from 0 on: between two large numbers that are close together there are no twelve others
        counts: Sequence[int] = np.histogram(values - values.min(), bins=HISTOGRAM_BINS)[0].tolist()
    except ValueError:  # the numbers are so small that a bin has no width
        return None
    return tuple(counts)


def _text(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if isinstance(value, Decimal):  # the zeros of the column's scale say nothing about the value
        text = f"{value:f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text if len(text) <= TEXT_CHARACTERS else f"{text[: TEXT_CHARACTERS - 1]}…"
