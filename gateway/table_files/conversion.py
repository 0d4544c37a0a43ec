"""Convert files that no job can read into tables: JSON arrays, and Excel workbooks."""

from __future__ import annotations

from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import msgspec

from gateway.core.formats import DataFormat

#: First bytes of a ZIP archive, as which a workbook (.xlsx) is stored.
_WORKBOOK_MAGIC = b"PK\x03\x04"

_OBJECTS = msgspec.json.Decoder(list[msgspec.Raw])


class ConversionError(ValueError):
    """The file cannot be converted into a table; the text is for the user."""


def converted(path: Path, target: Path) -> DataFormat | None:
    """Convert a file, if its first bytes show that no job can read it.

    Parameters
    ----------
    path : Path
        The file.
    target : Path
        A new file for the table.

    Returns
    -------
    str or None
        Format of the new file; None if the file needs no conversion.

    Raises
    ------
    ConversionError
        The content does not match the first bytes.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith(_WORKBOOK_MAGIC):
        _from_workbook(path, target)
        return "arrow"
    if start.removeprefix(BOM_UTF8).lstrip().startswith(b"["):
        _from_array(path, target)
        return "jsonl"
    return None


def _from_array(path: Path, target: Path) -> None:
    """Write each object of a JSON array on a line of its own, with its text as it is."""
    try:
        objects = _OBJECTS.decode(path.read_bytes().removeprefix(BOM_UTF8))
        lines = [msgspec.json.format(bytes(each), indent=-1) for each in objects]
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"not a JSON array of objects: {error}") from None
    if any(not line.startswith(b"{") for line in lines):
        raise ConversionError("expected a JSON array of objects, one for each row")
    target.write_bytes(b"".join(line + b"\n" for line in lines))


def _from_workbook(path: Path, target: Path) -> None:
    """Write the first sheet of a workbook as an Arrow file."""
    import pandas as pd
    import pyarrow as pa
    from pyarrow import feather

    try:
        with path.open("rb") as file:  # pandas would choose the reader by the file's name
            # Cells have types: with pandas' defaults the text 007 would be the number 7, and the text NA no value.
            cells = pd.read_excel(file, dtype=object, keep_default_na=False, na_values=[""], engine="openpyxl")
        frame = cells.convert_dtypes()
    except ImportError:
        raise ConversionError(
            "a workbook needs the package openpyxl in the Python environment of transform-gateway "
            "(pip install openpyxl); or save it as CSV"
        ) from None
    except Exception as error:  # openpyxl raises many kinds
        raise ConversionError(f"not a workbook that can be read: {error}") from None
    frame.columns = [str(name) for name in frame.columns]
    table = pa.Table.from_pandas(frame.apply(_as_one_type), preserve_index=False)
    feather.write_feather(table, target, compression="uncompressed")


def _as_one_type(column: Any) -> Any:
    """Return a column, as text if it has cells of several types."""
    import pyarrow as pa

    try:
        pa.Array.from_pandas(column)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return column.astype("string")
    return column
