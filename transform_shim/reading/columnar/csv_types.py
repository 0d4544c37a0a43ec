"""Fields for a CSV file that came without a manifest; no guess may lose anything."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from transform_shim.core.base_types import kind_of
from transform_shim.core.manifest import Field
from transform_shim.reading.values.column_blocks import BlockFile
from transform_shim.reading.values.from_python import TEMPORAL
from transform_shim.reading.values.temporal import NotTemporal

__all__ = ["infer_csv_fields"]

#: Base types that every text of a CSV column may say, strictest first; each pattern keeps what reads back the same.
_CSV_PATTERNS = (
    ("BigInteger", r"^-?(?:0|[1-9]\d{0,75})$"),
    ("Decimal", r"^-?(?:0|[1-9]\d*)(?:\.\d+)?$"),
    ("Float", r"^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?$"),
    ("Boolean", r"^(?:true|false|True|False|TRUE|FALSE)$"),
    ("Date", r"^\d{4}-\d\d-\d\d$"),
    ("DateTime", r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?$"),
    ("DateTimeWithTZ", r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)$"),
)


def infer_csv_fields(file: BlockFile, *, with_value: bool = False) -> tuple[Field, ...]:
    """Return the fields of a CSV file that is read as texts: a type only where all texts of the column fit it.

    ``007`` stays text, and so does a column without any value, which `with_value` leaves out.
    """
    possible = [dict(_CSV_PATTERNS) for _ in file.fields]
    has_value = [False] * len(file.fields)
    for block in file.blocks():
        for index, array in enumerate(block.arrays):
            if array.null_count == len(array):
                continue
            has_value[index] = True
            for name, pattern in list(possible[index].items()):
                if not pc.all(pc.match_substring_regex(array, pattern)).as_py() or not _parses(array, name):
                    del possible[index][name]
    return tuple(
        Field(field.name, next(iter(names), "Text") if seen else "Text")
        for field, names, seen in zip(file.fields, possible, has_value, strict=True)
        if seen or not with_value
    )


def _parses(array: pa.Array, base_type: str) -> bool:
    """Return whether texts that look like a date or date-time are one: 2024-02-30 and 0000-00-00 are not."""
    parse = TEMPORAL.get(kind_of(base_type))
    try:
        return parse is None or parse(array) is not None
    except NotTemporal:
        return False
