"""Compare the result of a transform with the expected table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gateway.client.request import format_of
from gateway.client.result import TransformResult

__all__ = ["assert_frame"]

TOLERANCE = 1e-9


def assert_frame(found: Any, expected: Any, *, key: Sequence[str] = (), tolerance: float = TOLERANCE) -> None:
    """Assert that two tables have the same columns and rows, in any order.

    Parameters
    ----------
    found : TransformResult or data frame
        The result.
    expected : data frame, mapping or Path
        A table, a mapping of column to values, or a file such as an earlier result. The types of columns count, except
        those of a file.
    key : sequence of str, optional
        Columns that identify a row, so that the message shows the cells that differ.
    tolerance : float, optional
        Relative difference up to which two numbers are the same.

    Raises
    ------
    AssertionError
        The text says which columns, types, rows and cells differ.
    """
    __tracebackhide__ = True
    from gateway.results.comparison import compare
    from gateway.results.result_file import base_types_of
    from gateway.results.text import comparison_text

    table = _table(found)
    difference = compare(_table(expected, base_types_of(table)), table, key, tolerance)
    if not difference.is_same or (difference.types_changed and not isinstance(expected, Path)):
        raise AssertionError(comparison_text(difference, "the expected table", tolerance))


def _table(value: Any, base_types: Mapping[str, str] = MappingProxyType({})) -> Any:
    import pandas as pd
    import pyarrow as pa

    from gateway.results.result_file import read_result

    if isinstance(value, TransformResult):
        return value.arrow()
    if isinstance(value, Path):
        return read_result(value, format_of(value), base_types)
    if isinstance(value, Mapping):
        return pa.table(dict(value))
    return pa.Table.from_pandas(value, preserve_index=False) if isinstance(value, pd.DataFrame) else pa.table(value)
