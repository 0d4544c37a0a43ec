"""Kinds of table files by their names, and the format of jobs that each is made from or into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gateway.core.formats import ENDINGS, PACKED_ENDINGS, DataFormat

WORKBOOK_ENDING = ".xlsx"
ARRAY_ENDING = ".json"

Shape = Literal["plain", "array", "workbook"]


@dataclass(frozen=True, slots=True)
class FileKind:
    """How a table is stored in a file.

    Attributes
    ----------
    data_format : str
        The closest format of jobs.
    shape : {"plain", "array", "workbook"}
        ``plain`` is a file of `data_format`, ``array`` a JSON array of objects, ``workbook`` an Excel file.
    compression : str or None
        ``gzip`` or ``zstd`` around it.
    """

    data_format: DataFormat
    shape: Shape = "plain"
    compression: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether a job reads and writes such files itself."""
        return self.shape == "plain" and self.compression is None


def kind_of(path: Path) -> FileKind:
    """Return the kind of a file by the ending of its name.

    Raises
    ------
    ValueError
        The ending is unknown.
    """
    compression = PACKED_ENDINGS.get(path.suffix.lower())
    ending = (path.with_suffix("") if compression else path).suffix.lower()
    if ending == WORKBOOK_ENDING and compression is None:
        return FileKind("arrow", "workbook")
    if ending == ARRAY_ENDING:
        return FileKind("jsonl", "array", compression)
    if ending in ENDINGS:
        return FileKind(ENDINGS[ending], compression=compression)
    raise ValueError(f"{path}: unknown ending {ending + path.suffix if compression else ending!r}; expected {known()}")


def known() -> str:
    """Return the endings as words of a sentence."""
    plain = ", ".join((*ENDINGS, ARRAY_ENDING))
    return f"one of {plain}, each also with {' or '.join(PACKED_ENDINGS)}, or {WORKBOOK_ENDING}"
