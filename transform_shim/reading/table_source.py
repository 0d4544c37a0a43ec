"""One input table: its manifest, its file, and the reader of its format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transform_shim.core.base_types import Kind
from transform_shim.core.errors import InputInvalid
from transform_shim.core.formats import FORMATS
from transform_shim.core.manifest import NUMBERS, Field, Manifest, SourceMetadata, read_manifest
from transform_shim.core.table_file import TableFile
from transform_shim.reading.values.column_blocks import BlockFile

__all__ = ["TableSource"]


class TableSource:
    """A table as user code will ask for it; opening reads the manifest, and without one the file.

    Raises
    ------
    InputInvalid
        If the manifest is invalid, or there is no manifest and the columns cannot be inferred.
    """

    def __init__(self, file: TableFile) -> None:
        self.file = file
        self.manifest: Manifest | None = None
        if not file.data_path.is_file():
            raise InputInvalid(file.alias, "the data file is missing")
        if file.manifest_path is not None:
            self.manifest = read_manifest(file.manifest_path, file.alias)
        self._reader = FORMATS[file.data_format].load_reader()
        self.fields, self._typed = self._find_fields()

    @property
    def metadata(self) -> SourceMetadata | None:
        """The value of ``frame.attrs["source_metadata"]``."""
        return None if self.manifest is None else SourceMetadata(self.manifest.raw)

    @property
    def size_bytes(self) -> int:
        """Size of the file on disk."""
        return self.file.data_path.stat().st_size

    def kind(self, field: Field) -> Kind | None:
        """Return the field's kind; None where only the file itself has the type."""
        return field.kind if self._typed else None

    def select(self, names: Sequence[str] | None = None) -> BlockFile:
        """Return the file with these columns only (all without `names`); other columns are not converted."""
        fields, others = self.fields, tuple[Field, ...]()
        if names is not None:
            by_name = {field.name: field for field in self.fields}
            fields = tuple(by_name.pop(name) for name in names)
            others = tuple(by_name.values())
        table: BlockFile = self._reader.open_table(self.file, fields, others, typed=self._typed)
        return table

    def _find_fields(self) -> tuple[tuple[Field, ...], bool]:
        if self.manifest is not None and self.manifest.fields:
            return tuple(self._as_sent(self.manifest.fields)), True
        found: tuple[tuple[Field, ...], bool] = self._reader.find_fields(self.file)
        return found

    def _as_sent(self, fields: Sequence[Field]) -> Iterator[Field]:
        """Yield the fields with the types of their values, which Metabase may have cast."""
        casts = {field.name: cast for field in fields if (cast := field.cast) is not None}
        found = self._reader.find_fields(self.file, casts)[0] if casts else ()
        are_numbers = {field.name: field.kind in NUMBERS for field in found}
        for field in fields:
            cast = casts.get(field.name)
            is_number = cast is not None and cast.kind in NUMBERS
            # a column without a value has the type that Metabase shows
            yield field if cast is None or are_numbers.get(field.name, is_number) is not is_number else cast
