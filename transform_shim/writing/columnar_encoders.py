"""The encoders of Parquet and Arrow IPC (file form), both compressed with zstd."""

from __future__ import annotations

import abc
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from transform_shim.writing.arrow_types import finite
from transform_shim.writing.frame_source import OutputFrame
from transform_shim.writing.hashing_file import HashingFile

__all__ = ["ArrowEncoder", "ParquetEncoder"]


class _BatchEncoder(abc.ABC):
    def __init__(self, frame: OutputFrame, sink: HashingFile) -> None:
        self._schema = pa.schema(list(zip(frame.names, frame.types, strict=True)))
        self._writer = self._open(pa.PythonFile(sink, mode="w"))

    @abc.abstractmethod
    def _open(self, file: pa.NativeFile) -> Any: ...

    def encode(self, arrays: list[pa.Array], first_row: int) -> Any:
        return pa.RecordBatch.from_arrays([finite(array) for array in arrays], schema=self._schema)

    def write(self, data: Any) -> None:
        self._writer.write_batch(data)

    def close(self) -> None:
        self._writer.close()


class ParquetEncoder(_BatchEncoder):
    """Parquet."""

    def _open(self, file: pa.NativeFile) -> Any:
        return pyarrow.parquet.ParquetWriter(file, self._schema, compression="zstd")


class ArrowEncoder(_BatchEncoder):
    """Arrow IPC."""

    def _open(self, file: pa.NativeFile) -> Any:
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        return pyarrow.ipc.new_file(file, self._schema, options=options)
