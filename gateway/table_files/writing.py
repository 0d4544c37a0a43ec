"""Results as files that no job writes: compressed, JSON arrays and Excel workbooks."""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from gateway.table_files.kinds import FileKind

#: Rows and columns of a sheet, and characters of a cell ("Excel specifications and limits", Microsoft).
SHEET_ROWS, SHEET_COLUMNS, CELL_CHARACTERS = 1_048_576, 16_384, 32_767

#: A workbook stores numbers as binary64, which has no more whole numbers than these without gaps.
EXACT_INTEGERS = 1 << 53


class UnwritableResult(ValueError):
    """A result does not fit into a file of the wanted kind; the text says why."""


def check_writer(kind: FileKind) -> None:
    """Refuse a kind of file that this environment cannot write, before a job runs for it.

    Raises
    ------
    UnwritableResult
        It is a workbook, and openpyxl is not installed.
    """
    if kind.shape == "workbook" and find_spec("openpyxl") is None:
        raise UnwritableResult(
            "a workbook needs the package openpyxl (pip install openpyxl); or choose .csv or .parquet"
        )


def write_as(source: Path, kind: FileKind, target: Path) -> None:
    """Write a result to a file of another kind, which appears complete or not at all.

    Parameters
    ----------
    source : Path
        The result, in the format `FileKind.data_format`.
    kind : FileKind
        The kind of the new file.
    target : Path
        The new file, replaced if it exists.

    Raises
    ------
    UnwritableResult
        The result does not fit, or `check_writer` refuses the kind.
    OSError
        A file cannot be read or written.
    """
    check_writer(kind)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        if kind.shape == "workbook":
            _write_workbook(source, part)
        else:
            with source.open("rb") as lines:
                _write_packed(lines, part, kind.compression, _array if kind.shape == "array" else _copy)
        part.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(target)) from None
    finally:
        part.unlink(missing_ok=True)


def _write_packed(
    source: BinaryIO, target: Path, compression: str | None, copy: Callable[[BinaryIO, Any], None]
) -> None:
    if compression is None:
        with target.open("xb") as file:
            copy(source, file)
        return
    import pyarrow as pa  # needed for compressed files only

    with pa.OSFile(str(target), "wb") as packed, pa.CompressedOutputStream(packed, compression) as stream:
        copy(source, stream)


def _copy(source: BinaryIO, target: Any) -> None:
    while block := source.read(1 << 20):
        target.write(block)


def _array(source: BinaryIO, target: Any) -> None:
    """Write JSON lines as an array, a row on a line, with the text of each as it is."""
    target.write(b"[")
    separator = b"\n"
    for line in source:
        target.write(separator + line.rstrip(b"\n"))
        separator = b",\n"
    target.write(b"\n]\n")


def _write_workbook(source: Path, target: Path) -> None:
    import openpyxl
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.utils.exceptions import IllegalCharacterError
    from pyarrow import feather

    table = feather.read_table(source, memory_map=False)
    if table.num_rows >= SHEET_ROWS or table.num_columns > SHEET_COLUMNS:
        raise UnwritableResult(
            f"{table.num_rows:,} rows and {table.num_columns:,} columns do not fit into a sheet, which has "
            f"{SHEET_ROWS:,} rows, the header included, and {SHEET_COLUMNS:,} columns; choose .csv or .parquet"
        )
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("result")

    def cell(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if len(value) > CELL_CHARACTERS:
            raise UnwritableResult(f"a text has more than {CELL_CHARACTERS:,} characters; choose .csv or .parquet")
        made = WriteOnlyCell(sheet, value)
        made.data_type = "s"  # or a text such as "=1+1" would be a formula
        return made

    try:
        sheet.append([cell(name) for name in table.column_names])
        for batch in table.to_batches(max_chunksize=1000):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                sheet.append([cell(_cell_value(value)) for value in row])
        book.save(target)
    except BaseException as error:
        sheet.close()
        if not isinstance(error, IllegalCharacterError):
            raise
        raise UnwritableResult("a text has control characters, which a workbook cannot have; choose .csv") from None


def _cell_value(value: Any) -> Any:
    """Return a value as a workbook can have it, without a silent change."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) <= EXACT_INTEGERS else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, datetime.datetime):
        return value if value.tzinfo is None and value.year >= 1900 else value.isoformat()
    if isinstance(value, datetime.date):
        return value if value.year >= 1900 else value.isoformat()
    return value if isinstance(value, datetime.time) else str(value)
