"""Second names for the files of a job's tables, which stay when the job's kernel has taken them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gateway.storage.inputs.fetched_table import FetchedTable


def linked_tables(tables: Sequence[FetchedTable], directory: Path) -> tuple[FetchedTable, ...]:
    """Link the files of tables into a new directory; no data is copied.

    Parameters
    ----------
    tables : sequence of FetchedTable
        Tables of one job.
    directory : Path
        On the same file system.

    Returns
    -------
    tuple of FetchedTable
        With paths in `directory`; empty where the file system has no hard links.
    """
    try:
        directory.mkdir(mode=0o700)
        return tuple(_linked(table, directory) for table in tables)
    except OSError:
        return ()


def _linked(table: FetchedTable, directory: Path) -> FetchedTable:
    data_path, manifest_path = directory / table.data_path.name, None
    data_path.hardlink_to(table.data_path)
    if table.manifest_path is not None:
        manifest_path = directory / table.manifest_path.name
        manifest_path.hardlink_to(table.manifest_path)
    return replace(table, data_path=data_path, manifest_path=manifest_path)
