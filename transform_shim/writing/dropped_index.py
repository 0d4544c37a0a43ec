"""The index of a returned pandas frame, which is not written."""

from __future__ import annotations

import pandas as pd

from transform_shim.core.errors import OutputInvalid
from transform_shim.core.notices import warn
from transform_shim.writing.column_names import label_text

__all__ = ["check_index"]


def check_index(frame: pd.DataFrame, table_rows: int) -> None:
    """Warn of an index that carries more than row numbers.

    Parameters
    ----------
    frame : pandas.DataFrame
        The returned frame.
    table_rows : int
        Rows of the largest table that transform() was given. Filtering and sorting leave its row numbers, which may be
        dropped; so may those of a frame that the script has made, as far as its own rows go.

    Raises
    ------
    OutputInvalid
        If the frame has rows and no columns.
    """
    is_kept = _has_row_numbers(frame.index, max(table_rows, len(frame)))
    if len(frame) and not len(frame.columns):
        hint = "" if is_kept else "; reset_index() makes columns of its index"
        raise OutputInvalid(f"the frame has {len(frame):,} row{'s' * (len(frame) != 1)} and no columns{hint}")
    if not is_kept and len(frame):
        levels = ", ".join("unnamed" if name is None else label_text(name) for name in frame.index.names)
        warn(f"the index ({levels}) is not written; reset_index() keeps it")


def _has_row_numbers(index: pd.Index, rows: int) -> bool:
    """Return whether an index has no names, and integers that can be the row numbers of so many rows."""
    if any(name is not None for name in index.names) or isinstance(index, pd.MultiIndex):
        return False
    if isinstance(index, pd.RangeIndex) or not len(index):
        return True
    return bool(pd.api.types.is_integer_dtype(index.dtype) and index.min() >= 0 and index.max() < rows)
