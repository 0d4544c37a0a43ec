"""Input tables to files, side by side, while the job still queues."""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import orjson

from gateway.errors import FailureCode, JobFailed
from gateway.jobs.events import EventSink, Progress
from gateway.jobs.model import DataFormat, FileSource, InputTable, MetabaseSource, Source, UrlSource
from gateway.settings import Settings
from gateway.storage.connections import Connections
from gateway.storage.directory import open_below
from gateway.storage.exchange import Exchange
from gateway.storage.files import FileWriter, copy_file, create_file
from gateway.storage.metabase import read_table
from gateway.storage.target import ExchangeError
from gateway.storage.transfer import Patience, Refused, refused

Compression = Literal["gzip", "zstd"]
A = TypeVar("A")
B = TypeVar("B")

PARALLEL_TABLES = 4
"""More connections than this share the same network and only cost memory."""

MANIFEST_BYTES = 16 << 20
PROGRESS_SECONDS = 0.25
SHOWN_ALIAS_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class FetchedTable:
    """A table as files in the job's own directory.

    Attributes
    ----------
    alias : str
        As in the request; the files are numbered and never named after it.
    compression : str or None
        How the data file is packed, where the storage said so by Content-Encoding. Manifests are always
        plain.
    bytes : int
        Size of the data file.
    """

    alias: str
    data_path: Path
    manifest_path: Path | None
    data_format: DataFormat
    compression: Compression | None
    bytes: int


class _Budget:
    """What the tables of one job may take up together."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes = 0

    def take(self, count: int) -> None:
        self._used_bytes += count
        if self._used_bytes > self._limit_bytes:
            raise _Unusable(f"the tables of this job are larger than max_input_bytes, {self._limit_bytes} bytes")

    def give_back(self, count: int) -> None:
        self._used_bytes -= count


class _Unusable(Exception):
    """The table cannot be had, and trying again would not help; the text says why."""


async def fetch_tables(
    tables: tuple[InputTable, ...],
    into_dir: Path,
    settings: Settings,
    sink: EventSink,
    connections: Connections | None = None,
) -> tuple[FetchedTable, ...]:
    """Bring every table of a job into `into_dir`, as ``0.data``, ``0.manifest``, ``1.data`` and so on, mode
    0644.

    Parameters
    ----------
    tables : tuple
        What the request asked for.
    into_dir : Path
        An empty directory of the job's own. What was begun when this fails stays there, for the owner to
        remove.
    settings : Settings
        ``max_input_bytes``, ``storage_stall_seconds``, ``working_dir_roots``.
    sink : EventSink
        Gets `Progress` of stage ``fetch``.
    connections : Connections, optional
        What storage is reached by.

    Raises
    ------
    JobFailed
        ``input_unavailable``, naming the table and the status or reason, never the query of a URL. The other
        downloads are abandoned then.
    """
    budget = _Budget(settings.max_input_bytes)
    places = asyncio.Semaphore(PARALLEL_TABLES)

    async def one(number: int, table: InputTable) -> FetchedTable:
        async with places:
            return await _Fetch(table, into_dir / str(number), settings, sink, budget, connections).run()

    tasks = [asyncio.create_task(one(number, table)) for number, table in enumerate(tables)]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Fetch:
    """One table on its way."""

    def __init__(
        self,
        table: InputTable,
        stem: Path,
        settings: Settings,
        sink: EventSink,
        budget: _Budget,
        connections: Connections | None,
    ) -> None:
        self._table = table
        self._connections = connections
        self._data_path = stem.with_name(f"{stem.name}.data")
        self._manifest_path = stem.with_name(f"{stem.name}.manifest")
        self._settings = settings
        self._sink = sink
        self._budget = budget
        self._reported_at = 0.0

    async def run(self) -> FetchedTable:
        table = self._table
        try:
            if isinstance(table.data, MetabaseSource):
                return await self._from_metabase(table.data)
            manifest, compression = await _both(
                self._manifest(table.manifest), self._bring(table.data, self._data_path, self._report)
            )
            data_format = _data_format(manifest, table.data_format)
            size = self._data_path.stat().st_size
            self._report(size, last=True)
            return FetchedTable(table.alias, self._data_path, manifest, data_format, compression, size)
        except (ExchangeError, Refused, _Unusable) as error:
            raise self._failed(str(error)) from None
        except OSError as error:
            raise self._failed(error.strerror or str(error)) from None

    async def _manifest(self, source: Source | None) -> Path | None:
        if source is None:
            return None
        compression = await self._bring(source, self._manifest_path, None, MANIFEST_BYTES)
        if compression == "gzip":
            await asyncio.to_thread(_unpack, self._manifest_path, MANIFEST_BYTES)
        elif compression is not None:
            raise _Unusable(f"its manifest is packed with {compression}")
        return self._manifest_path

    async def _bring(
        self, source: Source, path: Path, report: Callable[[int], None] | None, limit_bytes: int | None = None
    ) -> Compression | None:
        match source:
            case UrlSource(url):
                return await self._download(url, path, report, limit_bytes)
            case FileSource(source_path, owned):
                await self._take_file(source_path, owned, path, limit_bytes)
                return None
            case MetabaseSource():
                raise _Unusable("a manifest cannot be read from Metabase on its own")

    async def _take_file(self, source: Path, owned: bool, path: Path, limit_bytes: int | None) -> None:
        if owned and (size := _moved(source, path)) is not None:
            self._check_size(size, limit_bytes)
            self._budget.take(size)
            return
        roots = (source.parent,) if owned else self._settings.working_dir_roots
        fd, size = open_below(source, roots)
        try:
            self._check_size(size, limit_bytes)
            self._budget.take(size)
            target = create_file(path)
            try:
                await copy_file(fd, target, size)
            finally:
                os.close(target)
        finally:
            os.close(fd)

    async def _download(
        self, url: str, path: Path, report: Callable[[int], None] | None, limit_bytes: int | None
    ) -> Compression | None:
        patience = Patience(self._settings.storage_stall_seconds)
        writer = FileWriter(create_file(path))

        async def attempt() -> Compression | None:
            taken = 0
            try:
                stall_seconds = self._settings.storage_stall_seconds
                async with Exchange("GET", url, {}, stall_seconds, self._connections) as exchange:
                    if await exchange.answer() != 200:
                        raise await refused(exchange)
                    self._check_size(exchange.announced_bytes or 0, limit_bytes)
                    async with aclosing(exchange.chunks()) as chunks:
                        async for chunk in chunks:
                            taken += len(chunk)
                            self._budget.take(len(chunk))
                            self._check_size(taken, limit_bytes)
                            patience.check_pace(taken)
                            await writer.write(chunk)
                            if report is not None:
                                report(taken)
                    await writer.finish()
                    return _compression(exchange.headers.get("Content-Encoding"))
            except BaseException:
                self._budget.give_back(taken)
                await writer.restart()
                raise

        try:
            return await patience.try_again(attempt)
        finally:
            writer.close()

    async def _from_metabase(self, source: MetabaseSource) -> FetchedTable:
        writer = FileWriter(create_file(self._data_path))

        async def take(block: bytes) -> None:
            self._budget.take(len(block))
            await writer.write(block)
            self._report(writer.written_bytes)

        try:
            manifest = await read_table(source, take, self._settings.storage_stall_seconds)
            await writer.finish()
        finally:
            writer.close()
        fd = create_file(self._manifest_path)
        try:
            os.write(fd, orjson.dumps(manifest))
        finally:
            os.close(fd)
        self._report(writer.written_bytes, last=True)
        return FetchedTable(
            self._table.alias, self._data_path, self._manifest_path, "jsonl", None, writer.written_bytes
        )

    def _check_size(self, size: int, limit_bytes: int | None) -> None:
        if limit_bytes is not None and size > limit_bytes:
            raise _Unusable(f"its manifest is larger than {limit_bytes} bytes")
        if size > self._settings.max_input_bytes:
            text = f"it has {size} bytes, more than max_input_bytes allows ({self._settings.max_input_bytes})"
            raise _Unusable(text)

    def _report(self, done_bytes: int, last: bool = False) -> None:
        now = time.monotonic()
        if last or now - self._reported_at >= PROGRESS_SECONDS:
            self._reported_at = now
            self._sink.emit(Progress("fetch", self._table.alias, bytes=done_bytes))

    def _failed(self, reason: str) -> JobFailed:
        alias = self._table.alias
        if len(alias) > SHOWN_ALIAS_CHARACTERS:
            alias = alias[:SHOWN_ALIAS_CHARACTERS] + "..."
        return JobFailed(FailureCode.INPUT_UNAVAILABLE, f"Table {alias!r} could not be fetched: {reason}")


def _compression(content_encoding: str | None) -> Compression | None:
    """Return how the stored object is packed.

    ``aws-chunked`` only describes how some SDKs sent the object once; S3 keeps the word although the object
    is plain.
    """
    words = [word.strip().lower() for word in (content_encoding or "").split(",")]
    words = [word for word in words if word not in ("", "identity", "aws-chunked")]
    match words:
        case []:
            return None
        case ["gzip" | "x-gzip"]:
            return "gzip"
        case ["zstd"]:
            return "zstd"
        case _:
            raise _Unusable(f"it is packed with {', '.join(words)!r}; gzip and zstd are understood")


async def _both(first: Coroutine[Any, Any, A], second: Coroutine[Any, Any, B]) -> tuple[A, B]:
    """Await both side by side; when one fails, the other is ended before the failure is raised, bare."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = group.create_task(first), group.create_task(second)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return tasks[0].result(), tasks[1].result()


def _data_format(manifest_path: Path | None, asked: DataFormat) -> DataFormat:
    """Return the format of the data: what the request says, or else the manifest's ``data_format``."""
    if manifest_path is None or asked != "jsonl":
        return asked
    try:
        manifest = orjson.loads(manifest_path.read_bytes())
    except orjson.JSONDecodeError:
        return asked  # the shim names line and column of a broken manifest; here it only matters that it is none
    named = manifest.get("data_format") if isinstance(manifest, dict) else None
    found: DataFormat | None = next((known for known in get_args(DataFormat) if known == named), None)
    return found or asked


def _moved(source: Path, path: Path) -> int | None:
    """Rename a file that came with the request into place; returns its size, or None where that takes a copy."""
    try:
        source.rename(path)
    except OSError:
        return None
    path.chmod(0o644)
    return path.stat().st_size


def _unpack(path: Path, limit_bytes: int) -> None:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        plain = unpacker.decompress(path.read_bytes(), limit_bytes + 1)
    except zlib.error as error:
        raise _Unusable(f"its manifest is not valid gzip: {error}") from None
    if len(plain) > limit_bytes or not unpacker.eof:
        raise _Unusable(f"its manifest is truncated, or larger than {limit_bytes} bytes when unpacked")
    path.write_bytes(plain)
