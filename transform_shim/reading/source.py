"""One input table: its manifest, its file, and how to go through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from transform_shim.basetypes import Kind
from transform_shim.errors import InputInvalid
from transform_shim.manifest import Field, Manifest, SourceMetadata, read_manifest
from transform_shim.reading.columnar import ColumnarFile, own_fields
from transform_shim.reading.infer import infer_csv_fields, infer_fields
from transform_shim.reading.jsonlines import Columns, JsonLines
from transform_shim.request import TableFile

__all__ = ["BlockFile", "TableSource"]


class BlockFile(Protocol):
    """A file that can be gone through in blocks of columns, any number of times."""

    fields: tuple[Field, ...]

    def blocks(self) -> Iterator[Columns]:
        """The columns, block by block."""
        ...


class TableSource:
    """A table as user code will ask for it; opening reads the manifest, and the file only when there is none.

    Raises
    ------
    InputInvalid
        If the manifest cannot be used, or the file has none and its columns cannot be found out.
    """

    def __init__(self, file: TableFile) -> None:
        self.file = file
        self.manifest: Manifest | None = None
        if not file.data_path.is_file():
            raise InputInvalid(file.alias, "the data file is missing")
        if file.manifest_path is not None:
            self.manifest = read_manifest(file.manifest_path, file.alias)
        self.fields, self._typed = self._find_fields()

    @property
    def metadata(self) -> SourceMetadata | None:
        """What ``frame.attrs["source_metadata"]`` shows."""
        return None if self.manifest is None else SourceMetadata(self.manifest.raw)

    @property
    def size_bytes(self) -> int:
        """Size of the file as it lies there."""
        return self.file.data_path.stat().st_size

    def kind(self, field: Field) -> Kind | None:
        """The field's kind; None where only the file itself knows the type."""
        return field.kind if self._typed else None

    def select(self, names: Sequence[str] | None = None) -> BlockFile:
        """The file with these columns only (all without `names`); what is not asked for is not converted."""
        fields = self.fields
        if names is not None:
            by_name = {field.name: field for field in fields}
            fields = tuple(by_name[name] for name in names)
        if self.file.data_format == "jsonl":
            return JsonLines(self.file, fields, [field for field in self.fields if field not in fields])
        return ColumnarFile(self.file, fields, typed=self._typed)

    def _find_fields(self) -> tuple[tuple[Field, ...], bool]:
        if self.manifest is not None and self.manifest.fields:
            return self.manifest.fields, True
        if self.file.data_format == "jsonl":
            return infer_fields(self.file), True
        fields = own_fields(self.file)
        if self.file.data_format == "csv":
            return infer_csv_fields(ColumnarFile(self.file, fields, typed=False)), True
        return fields, False
