"""The encoders of JSON lines and CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from transform_shim.writing.frame_source import OutputFrame
from transform_shim.writing.hashing_file import HashingFile
from transform_shim.writing.lines.rows import csv_header, csv_rows, json_rows

__all__ = ["CsvEncoder", "JsonLinesEncoder"]

#: Cells and bytes that become lines in one step. All at once, a batch of 200 columns takes 200 MB of memory instead of
#: 105, and one of texts of 1 kB 70 MB instead of 40.
_LINES_CELLS, _LINES_BYTES = 1 << 19, 4 << 20
_FEW_ROWS = 256


class JsonLinesEncoder:
    """JSON lines: batches become text in any thread, and are written in order."""

    _render: Callable[[Sequence[str], Sequence[pa.Array], int], list[memoryview]] = staticmethod(json_rows)

    def __init__(self, frame: OutputFrame, sink: HashingFile) -> None:
        self._names, self._sink = frame.names, sink

    def encode(self, arrays: list[pa.Array], first_row: int) -> Any:
        rows, step = len(arrays[0]), _rows_at_once(arrays)
        blocks = []
        for start in range(0, rows, step):
            part = arrays if step >= rows else [array.slice(start, step) for array in arrays]
            blocks += self._render(self._names, part, first_row + start)
        return blocks

    def write(self, data: Any) -> None:
        for block in data:
            self._sink.write(block)

    def close(self) -> None:
        """Do nothing: nothing follows the last row."""


def _rows_at_once(arrays: list[pa.Array]) -> int:
    """Return how many rows to join at a time: their texts are copied once before."""
    rows = len(arrays[0])
    if rows <= _FEW_ROWS:
        return rows
    size_bytes = sum(map(_text_bytes, arrays))
    return max(_FEW_ROWS, min(rows, _LINES_CELLS // len(arrays), _LINES_BYTES * rows // max(size_bytes, 1)))


def _text_bytes(array: pa.Array) -> int:
    """Return the bytes of an array, with each text of a dictionary as often as rows have it."""
    if not pa.types.is_dictionary(array.type):
        return int(array.nbytes)
    return int(pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0)


class CsvEncoder(JsonLinesEncoder):
    """CSV with a header line."""

    _render = staticmethod(csv_rows)

    def __init__(self, frame: OutputFrame, sink: HashingFile) -> None:
        super().__init__(frame, sink)
        if frame.names:
            sink.write(csv_header(frame.names))
