"""The tables of a notebook, by the names of the parameters of `transform`."""

from __future__ import annotations

import difflib
import json
import keyword
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from transform_shim.core.errors import InputInvalid, InvalidReturn, OutputInvalid
from transform_shim.core.formats import DataFormat
from transform_shim.core.progress import Progress
from transform_shim.core.table_file import TableFile
from transform_shim.notebook.companion import OnEvent, connect
from transform_shim.notebook.errors import NotebookError
from transform_shim.reading.frame_kinds import FRAME_KINDS, FrameKind, load_table
from transform_shim.reading.table_source import TableSource
from transform_shim.writing.column_types import ColumnFacts, base_type_for
from transform_shim.writing.frame_source import open_frame
from transform_shim.writing.output import write_output

__all__ = ["Table", "Tables"]


@dataclass(frozen=True, slots=True)
class Table:
    """One loaded table.

    Attributes
    ----------
    name : str
    rows : int
    fields : tuple of (str, str)
        Column names and Metabase's types: those of the manifest, else inferred from the data.
    origin : str
        Its source as the user named it, without the query of a URL.
    size_bytes : int
        Size of the file that a job would get.
    data_format : str
    manifest : dict or None
    number : int
        The companion's number for it.
    source : TableSource
        How the kernel reads it.
    """

    name: str
    rows: int
    fields: tuple[tuple[str, str], ...]
    origin: str
    size_bytes: int
    data_format: str
    manifest: Mapping[str, Any] | None
    number: int
    source: TableSource

    def __repr__(self) -> str:
        rows, columns = self.rows, len(self.fields)
        counts = f"{rows:,} row{'s' * (rows != 1)}, {columns} column{'s' * (columns != 1)}"
        return f"{self.name}: {counts} ({self.origin})"


class Tables:
    """The loaded tables by name: ``tables.orders`` and ``tables["orders"]`` are the frames that transform() gets.

    Each access gives a frame of its own (a copy of one that was read once): changing it changes no other.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Table] = {}
        self._frames: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._frames:
            self._frames[name] = self.read(name)
        # a shallow copy shares the values before pandas 3: transform(tables.t), called by hand, could change the table
        return self._frames[name].copy()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except NotebookError as error:
            raise AttributeError(str(error)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded)

    def __len__(self) -> int:
        return len(self._loaded)

    def __contains__(self, name: object) -> bool:
        return name in self._loaded

    def __dir__(self) -> list[str]:
        return [*self._loaded, "info", "read"]

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._loaded)

    def __repr__(self) -> str:
        if not self._loaded:
            return "no tables are loaded; %table NAME SOURCE loads one"
        return "\n".join(map(repr, self._loaded.values()))

    def info(self, name: str) -> Table:
        """Return the facts about a table.

        Parameters
        ----------
        name : str
            Of a loaded table.

        Returns
        -------
        Table
            Rows, columns, types and origin.

        Raises
        ------
        NotebookError
            There is no table of this name; the text names the loaded ones.
        """
        try:
            return self._loaded[name]
        except KeyError:
            raise NotebookError(self._missing(name)) from None

    def read(self, name: str, form: FrameKind = "pandas") -> Any:
        """Read a table again, as the frame kind that an annotation of transform()'s parameter names.

        Parameters
        ----------
        name : str
            Of a loaded table.
        form : {'pandas', 'arrow', 'arrow_reader', 'polars', 'polars_lazy', 'duckdb'}
            The frame kind.

        Returns
        -------
        data frame, table or relation
            Of the library that the frame kind names.

        Raises
        ------
        NotebookError
            There is no such table or frame kind.
        InputInvalid
            The file does not match its manifest.
        """
        table = self.info(name)
        if form not in FRAME_KINDS:
            raise NotebookError(f"{form!r} is not one of {', '.join(FRAME_KINDS)}")
        if form.startswith(("polars", "duckdb")):
            __import__(form.partition("_")[0])  # in a job, the script that names the kind has imported it
        return load_table(table.source, form).value

    def load(
        self,
        name: str,
        source: str,
        manifest: str | None = None,
        data_format: DataFormat | None = None,
        on_event: OnEvent | None = None,
    ) -> Table:
        """Fetch a table through the companion and keep it, in place of one of the same name.

        Parameters
        ----------
        name : str
            A Python identifier.
        source : str
            A file, a URL, ``metabase:ID`` or ``metabase:NAME``.
        manifest : str, optional
            File or URL of the manifest.
        data_format : str, optional
            Needed where neither the name nor the content of the file shows it.
        on_event : callable, optional
            Called with the progress of the fetch.

        Returns
        -------
        Table

        Raises
        ------
        NotebookError
            The table cannot be loaded; the text says why.
        """
        _check_name(name)
        found = connect().ask("load", on_event, name=name, source=source, manifest=manifest, data_format=data_format)
        return self._keep(name, source.partition("?")[0], found)

    def take(self, name: str, frame: Any, manifest: Mapping[str, Any] | None = None, origin: str = "a frame") -> Table:
        """Keep a data frame of the notebook as a table: as a transform that returns it would hand it to the next one.

        So its index is left out, and columns that came from a table keep the types they had there.

        Parameters
        ----------
        name : str
            A Python identifier.
        frame : data frame
            Of pandas, Polars, Arrow or DuckDB.
        manifest : mapping, optional
            Types of the columns; otherwise those that a transform's output would have.
        origin : str, optional
            Shown as the place that the table came from.

        Returns
        -------
        Table

        Raises
        ------
        NotebookError
            The frame cannot be written as a table; the text says why.
        """
        _check_name(name)
        with tempfile.TemporaryDirectory() as directory:
            path, described = _write_frame(frame, Path(directory))
            chosen = described if manifest is None else json.loads(json.dumps(manifest, default=str))
            with path.open("rb") as file:
                found = connect().ask("frame", None, file.fileno(), manifest=chosen)
        return self._keep(name, origin, found)

    def drop(self, name: str) -> None:
        """Forget a table and remove its files; an unknown name is refused as by `info`."""
        table = self.info(name)
        del self._loaded[name]
        self._frames.pop(name, None)
        connect().unwanted(table.number)

    def _keep(self, name: str, origin: str, found: Mapping[str, Any]) -> Table:
        manifest_path = found["manifest_path"]
        file = TableFile(
            name, Path(found["data_path"]), Path(manifest_path) if manifest_path else None, found["data_format"]
        )
        try:
            source = TableSource(file)
            # one column is enough to count, and shows a file that is not of its format
            names = [field.name for field in source.fields][:1]
            rows = sum(block.rows for block in source.select(names).blocks()) if names else 0
        except InputInvalid as error:
            connect().unwanted(found["number"])
            raise NotebookError(str(error)) from None
        manifest = None if source.manifest is None else source.manifest.raw
        fields = _typed_fields(source)
        table = Table(
            name, rows, fields, origin, found["size_bytes"], found["data_format"], manifest, found["number"], source
        )
        if name in self._loaded:
            self.drop(name)
        self._loaded[name] = table
        return table

    def _missing(self, name: str) -> str:
        if not self._loaded:
            return f"there is no table {name!r}: none are loaded yet; %table {name} SOURCE loads one"
        close = difflib.get_close_matches(name, self._loaded, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; loaded are {', '.join(map(repr, self._loaded))}"
        return f"there is no table {name!r}{hint}"


def _check_name(name: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise NotebookError(
            f"{name!r} cannot be a table's name: it must be one that a parameter of transform() can have"
        )


def _write_frame(frame: Any, directory: Path) -> tuple[Path, dict[str, Any]]:
    """Write a frame and its manifest as a transform that returns it would."""
    path, manifest_path = directory / "frame", directory / "manifest"
    try:
        write_output(open_frame(frame, []), "arrow", path, manifest_path, Progress(None, "write", "frame"))
    except InvalidReturn:
        kind = type(frame).__name__
        text = f"a table is made of a data frame (pandas, Polars, Arrow, DuckDB), not of {kind!r}"
        raise NotebookError(text) from None
    except (OutputInvalid, OSError) as error:
        raise NotebookError(f"the frame cannot be written: {error}") from None
    manifest: dict[str, Any] = json.loads(manifest_path.read_bytes())
    return path, {**manifest, "data_format": "arrow"}


def _typed_fields(source: TableSource) -> tuple[tuple[str, str], ...]:
    if source.manifest is not None and source.manifest.fields:
        return tuple((field.name, field.base_type or "?") for field in source.fields)
    return tuple((field.name, _looks_like(source, field.name, field.base_type)) for field in source.fields)


def _looks_like(source: TableSource, name: str, base_type: str | None) -> str:
    """Return the type of a column without a manifest: inferred from the text, or the file's own."""
    if base_type is not None:
        return base_type
    for block in source.select([name]).blocks():
        array = block.arrays[0]
        if array is not None:
            facts = ColumnFacts(True, 0, 2**40) if pa.types.is_int64(array.type) else ColumnFacts(True)
            return base_type_for(array.type, facts)
    return "?"
