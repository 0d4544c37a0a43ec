"""Input tables to files, several at a time, while the job is still queued."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec
import orjson

from gateway.core.async_files import DISK_FULL, FileWriter, copy_file, create_file
from gateway.core.directories import open_below
from gateway.core.errors import FailureCode, JobFailed
from gateway.core.events import EventSink, Progress
from gateway.core.formats import DataFormat
from gateway.core.job import FileSource, InputTable, MetabaseSource, ParcelSource, Source, UploadSource, UrlSource
from gateway.core.settings import Settings
from gateway.core.tasks import gather_two
from gateway.core.uploads import Uploads
from gateway.storage.inputs.compression import Compression, UnusableInput, compression_of, decompress_manifest
from gateway.storage.inputs.fetched_table import FetchedTable, shown_alias, table_paths
from gateway.storage.inputs.metabase import read_table
from gateway.storage.objects.client import ObjectClient
from gateway.storage.objects.errors import StorageError
from gateway.storage.objects.retries import RetryPolicy, error_from

#: More connections than this share the same network and only cost memory.
PARALLEL_TABLES = 4

MANIFEST_BYTES = 16 << 20

#: Time between two progress events of one table.
PROGRESS_SECONDS = 0.25


class _Manifest(msgspec.Struct):
    """The only member that is needed here: to make objects of 16 MB of others takes the loop two seconds."""

    data_format: DataFormat | None = None


_MANIFESTS = msgspec.json.Decoder(_Manifest)


class _Budget:
    """How many bytes the tables of one job may have together."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes = 0

    def reserve(self, count: int) -> None:
        self._used_bytes += count
        if self._used_bytes > self._limit_bytes:
            raise UnusableInput(f"the tables of this job are larger than MAX_INPUT_BYTES, {self._limit_bytes} bytes")

    def release(self, count: int) -> None:
        self._used_bytes -= count


async def fetch_tables(
    client: ObjectClient,
    tables: tuple[InputTable, ...],
    into_dir: Path,
    settings: Settings,
    sink: EventSink,
    uploads: Uploads | None = None,
    unfetched: dict[str, None] | None = None,
    prefix: str = "",
) -> tuple[FetchedTable, ...]:
    """Fetch every table of a job into `into_dir`, as ``0.data``, ``0.manifest``, ``1.data`` and so on, mode 0644.

    Parameters
    ----------
    client : ObjectClient
        Downloads tables that have a URL.
    tables : tuple of InputTable
        The tables of the request.
    into_dir : Path
        A directory without files of these names. After a failure there are partial ones, for its owner to remove.
    settings : Settings
        ``max_input_bytes``, ``working_dir_roots``.
    sink : EventSink
        Receives `Progress` of stage ``fetch``.
    uploads : Uploads, optional
        Files that came with the request; they are linked, and stay where they are.
    unfetched : dict, optional
        Aliases of tables that are not complete, as keys; each is removed when its table is complete.
    prefix : str
        The names of all files begin with it.

    Returns
    -------
    tuple of FetchedTable
        In the order of `tables`.

    Raises
    ------
    JobFailed
        ``input_unavailable``; the text names the table and the status or reason, never the query of a URL. The other
        downloads are cancelled first.
    """
    budget = _Budget(settings.max_input_bytes)
    slots = asyncio.Semaphore(PARALLEL_TABLES)

    async def fetch(number: int, table: InputTable) -> FetchedTable:
        async with slots:
            fetched = await _Fetch(client, table, into_dir / f"{prefix}{number}", settings, sink, budget, uploads).run()
        if unfetched is not None:
            unfetched.pop(table.alias, None)
        return fetched

    tasks = [asyncio.create_task(fetch(number, table)) for number, table in enumerate(tables)]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Fetch:
    """The download of one table."""

    def __init__(
        self,
        client: ObjectClient,
        table: InputTable,
        stem: Path,
        settings: Settings,
        sink: EventSink,
        budget: _Budget,
        uploads: Uploads | None,
    ) -> None:
        self._client = client
        self._table = table
        self._uploads = uploads
        self._data_path, self._manifest_path = table_paths(stem)
        self._settings = settings
        self._sink = sink
        self._budget = budget
        self._reported_at = 0.0

    async def run(self) -> FetchedTable:
        table = self._table
        try:
            if isinstance(table.data, MetabaseSource):
                return await self._from_metabase(table.data)
            manifest, compression = await gather_two(
                self._manifest(table.manifest), self._fetch_source(table.data, self._data_path, self._report)
            )
            data_format = _data_format(manifest, table.data_format)
            size = self._data_path.stat().st_size
            self._report(size, last=True)
            return FetchedTable(table.alias, self._data_path, manifest, data_format, compression, size)
        except StorageError as error:
            raise self._failed(str(error), retryable=error.is_transient) from None
        except UnusableInput as error:
            raise self._failed(str(error), retryable=False) from None
        except OSError as error:
            if error.errno in DISK_FULL:
                text = f"The gateway could not store table {shown_alias(table.alias)}: {error.strerror}"
                raise JobFailed(FailureCode.GATEWAY_DISK_FAILED, text) from None
            raise self._failed(error.strerror or str(error), retryable=True) from None

    async def _manifest(self, source: Source | None) -> Path | None:
        if source is None:
            return None
        compression = await self._fetch_source(source, self._manifest_path, None, MANIFEST_BYTES)
        if compression == "gzip":
            await asyncio.to_thread(decompress_manifest, self._manifest_path, MANIFEST_BYTES)
        elif compression is not None:
            raise UnusableInput(f"its manifest is compressed with {compression}")
        return self._manifest_path

    async def _fetch_source(
        self, source: Source, path: Path, report: Callable[[int], None] | None, limit_bytes: int | None = None
    ) -> Compression | None:
        match source:
            case UrlSource(url):
                return await self._download(self._client, url, path, report, limit_bytes)
            case ParcelSource(url):
                # the member that has the file may be starting again
                retry_until = time.monotonic() + self._settings.delivery_retry_seconds
                return await self._download(self._client.parcels, url, path, report, limit_bytes, retry_until)
            case FileSource(source_path):
                await self._copy(source_path, self._settings.working_dir_roots, path, limit_bytes)
                return None
            case UploadSource(name):
                await self._take_upload(name, path, limit_bytes)
                return None
            case MetabaseSource():
                raise UnusableInput("a manifest cannot be read from Metabase on its own")

    async def _take_upload(self, name: str, path: Path, limit_bytes: int | None) -> None:
        if self._uploads is None:
            raise UnusableInput("its file did not come with the request")
        source = self._uploads.path(name)
        size = _linked(source, path)
        if size is None:
            await self._copy(source, (source.parent,), path, limit_bytes)
            return
        self._check_size(size, limit_bytes)
        self._budget.reserve(size)

    async def _copy(self, source: Path, roots: Sequence[Path], path: Path, limit_bytes: int | None) -> None:
        fd, size = open_below(source, roots)
        try:
            self._check_size(size, limit_bytes)
            self._budget.reserve(size)
            target = create_file(path)
            try:
                await copy_file(fd, target, size)
            finally:
                os.close(target)
        finally:
            os.close(fd)

    async def _download(
        self,
        client: ObjectClient,
        url: str,
        path: Path,
        report: Callable[[int], None] | None,
        limit_bytes: int | None,
        retry_until: float | None = None,
    ) -> Compression | None:
        writer = FileWriter(create_file(path))

        async def attempt() -> Compression | None:
            received = 0
            try:
                async with client.request("GET", url) as answer:
                    if answer.status != 200:
                        raise await error_from(answer)
                    self._check_size(answer.announced_bytes or 0, limit_bytes)
                    async with aclosing(answer.chunks()) as chunks:
                        async for chunk in chunks:
                            received += len(chunk)
                            self._budget.reserve(len(chunk))
                            self._check_size(received, limit_bytes)
                            await writer.write(chunk)
                            if report is not None:
                                report(received)
                    await writer.finish()
                    return compression_of(answer.headers.get("Content-Encoding"))
            except BaseException:
                self._budget.release(received)
                await writer.restart()
                raise

        try:
            return await RetryPolicy(client.stall_seconds, retry_until).run(attempt, url)
        finally:
            writer.close()

    async def _from_metabase(self, source: MetabaseSource) -> FetchedTable:
        writer = FileWriter(create_file(self._data_path))

        async def write(block: bytes) -> None:
            self._budget.reserve(len(block))
            await writer.write(block)
            self._report(writer.written_bytes)

        try:
            manifest = await read_table(self._client, source, write)
            await writer.finish()
        finally:
            writer.close()
        with os.fdopen(create_file(self._manifest_path), "wb") as file:
            file.write(orjson.dumps(manifest))
        self._report(writer.written_bytes, last=True)
        return FetchedTable(
            self._table.alias, self._data_path, self._manifest_path, "jsonl", None, writer.written_bytes
        )

    def _check_size(self, size_bytes: int, limit_bytes: int | None) -> None:
        if limit_bytes is not None and size_bytes > limit_bytes:
            raise UnusableInput(f"its manifest is larger than {limit_bytes} bytes")
        if size_bytes > self._settings.max_input_bytes:
            text = f"it has {size_bytes} bytes, more than MAX_INPUT_BYTES allows ({self._settings.max_input_bytes})"
            raise UnusableInput(text)

    def _report(self, done_bytes: int, last: bool = False) -> None:
        now = time.monotonic()
        if last or now - self._reported_at >= PROGRESS_SECONDS:
            self._reported_at = now
            self._sink.emit(Progress("fetch", self._table.alias, bytes=done_bytes))

    def _failed(self, reason: str, *, retryable: bool) -> JobFailed:
        text = f"Table {shown_alias(self._table.alias)} could not be fetched: {reason}"
        return JobFailed(FailureCode.INPUT_UNAVAILABLE, text, retryable=retryable)


def _data_format(manifest_path: Path | None, asked: DataFormat) -> DataFormat:
    """Return the format of the data: the request's, or else the manifest's ``data_format``."""
    if manifest_path is None or asked != "jsonl":
        return asked
    try:
        return _MANIFESTS.decode(manifest_path.read_bytes()).data_format or asked
    except (ValueError, RecursionError):
        return asked  # an unknown format; the shim reports line and column of a broken manifest


def _linked(source: Path, path: Path) -> int | None:
    """Link a file that came with the request into place; return its size, or None where only a copy is possible.

    It also stays in its own place, because a job that is cut off by the end of the gateway runs again.
    """
    try:
        path.hardlink_to(source)
    except OSError:
        return None
    path.chmod(0o644)
    return path.stat().st_size
