"""The data of a failed job's tables: whole copies where they fit, else the first rows."""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from gateway.core.async_files import create_file
from gateway.core.formats import FORMATS, DataFormat
from gateway.core.job import InputTable, MetabaseSource, TableFacts
from gateway.jobs.bundles.bundle import BundledTable, Kept
from gateway.storage import FetchedTable
from gateway.storage.inputs.compression import Compression

FILE_MODE = 0o600

FIRST_ROWS = 20
#: The first rows are looked for in this much of a table; rows that do not fit are not kept.
FIRST_BYTES = 1 << 18

COPIED_BYTES = 1 << 20

#: A larger manifest is not kept. One of a hundred columns has some 20 kB.
MANIFEST_BYTES = 1 << 20

#: The members of a manifest that `transform_shim.core.manifest` documents; a caller's own may contain a URL.
MANIFEST_MEMBERS = ("schema_version", "data_format", "data_version", "fields", "table_metadata")


def keep_tables(
    tables: Sequence[InputTable],
    used: Collection[str],
    fetched: Sequence[FetchedTable],
    read: Sequence[TableFacts],
    directory: Path,
    room_bytes: int,
) -> tuple[BundledTable, ...]:
    """Copy the data of a job's tables into a directory, each into a file of the name that `file_name` returns.

    Parameters
    ----------
    tables : sequence of InputTable
        All tables of the request.
    used : collection of str
        Aliases of those that transform() may take.
    fetched : sequence of FetchedTable
        Those that were fetched.
    read : sequence of TableFacts
        The job's report on the tables that it read.
    directory : Path
        Of the bundle.
    room_bytes : int
        Size of all whole copies together; the smallest tables are copied first.

    Returns
    -------
    tuple of BundledTable
        In the order of `tables`.

    Raises
    ------
    OSError
        The disk cannot be written.
    """
    files = {table.alias: table for table in fetched}
    columns = {facts.alias: facts.columns for facts in read}
    kept: dict[str, Kept] = {}
    numbers = {table.alias: number for number, table in enumerate(tables)}
    for file in sorted(fetched, key=lambda each: each.bytes):
        target = directory / file_name(numbers[file.alias])
        if file.bytes <= room_bytes:
            room_bytes -= _copy(file.data_path, target, file.bytes)
            kept[file.alias] = "whole"
        elif head := first_rows(file.data_path, file.data_format, file.compression):
            _write(target, head)
            kept[file.alias] = "first_rows"
    return tuple(
        _described(table, table.alias in used, files.get(table.alias), kept.get(table.alias, "nothing"), columns)
        for table in tables
    )


def file_name(number: int) -> str:
    """Return the name of the file with the data of the table of this number; an alias never becomes a path."""
    return f"{number}.data"


def first_rows(path: Path, data_format: DataFormat, compression: Compression | None) -> bytes:
    """Return the beginning of a table as a smaller table of the same format, without compression.

    Parameters
    ----------
    path : Path
        The data.
    data_format : DataFormat
        Its format.
    compression : {'gzip', 'zstd'} or None
        How it is compressed.

    Returns
    -------
    bytes
        At most `FIRST_ROWS` rows, and the header of a CSV. Empty where not even a row fits, and for formats and
        compressions that the gateway, which loads neither pandas nor Arrow, cannot read.
    """
    if not FORMATS[data_format].is_text or compression == "zstd":
        return b""
    with path.open("rb") as file:
        head = file.read(FIRST_BYTES)
    if compression == "gzip":
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, FIRST_BYTES)
        except zlib.error:
            return b""
    left = FIRST_ROWS + (data_format == "csv")
    end = position = quotes = 0
    for line in head.split(b"\n")[:-1]:
        position += len(line) + 1
        quotes += line.count(b'"')
        if data_format == "csv" and quotes % 2:  # the line end is inside a text
            continue
        end, left = position, left - 1
        if not left:
            break
    return head[:end]


def _described(
    table: InputTable,
    used: bool,
    file: FetchedTable | None,
    kept: Kept,
    columns: Mapping[str, tuple[tuple[str, str], ...]],
) -> BundledTable:
    manifest = _manifest(file.manifest_path) if file is not None and file.manifest_path is not None else None
    named = manifest.get("table_metadata") if manifest is not None else None
    table_id = named.get("table_id") if isinstance(named, dict) else None
    if isinstance(table.data, MetabaseSource):
        table_id = table.data.table_id
    return BundledTable(
        alias=table.alias,
        data_format=file.data_format if file is not None else table.data_format,
        used=used,
        kept=kept,
        bytes=file.bytes if file is not None else None,
        compression=file.compression if file is not None and kept == "whole" else None,
        table_id=table_id if type(table_id) is int and abs(table_id) < 2**53 else None,
        manifest=manifest,
        columns=columns.get(table.alias, ()) if manifest is None else (),
    )


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > MANIFEST_BYTES:
            return None
        value = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return {name: value[name] for name in MANIFEST_MEMBERS if name in value} if isinstance(value, dict) else None


def _copy(source: Path, target: Path, size_bytes: int) -> int:
    """Copy the content that a file had when it was fetched; return its size."""
    left_bytes = size_bytes
    source_fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(source_fd, "rb") as reader, os.fdopen(create_file(target, FILE_MODE), "wb") as writer:
        while left_bytes and (block := reader.read(min(COPIED_BYTES, left_bytes))):
            writer.write(block)
            left_bytes -= len(block)
    return size_bytes - left_bytes


def _write(path: Path, content: bytes) -> None:
    with os.fdopen(create_file(path, FILE_MODE), "wb") as file:
        file.write(content)
