"""A table of a job on the disk: the names of its files, and its name in messages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gateway.core.formats import DataFormat
from gateway.storage.inputs.compression import Compression

SHOWN_ALIAS_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class FetchedTable:
    """A table as files in the job's own directory.

    Attributes
    ----------
    alias : str
        As in the request; the files have numbers as names, never the alias.
    compression : str or None
        How the data file is compressed, if the storage said so in Content-Encoding. Manifests are always plain.
    bytes : int
        Size of the data file.
    """

    alias: str
    data_path: Path
    manifest_path: Path | None
    data_format: DataFormat
    compression: Compression | None
    bytes: int


def table_paths(stem: Path) -> tuple[Path, Path]:
    """Return the paths of a fetched table's data and manifest, which are `stem` with a suffix."""
    return stem.with_name(f"{stem.name}.data"), stem.with_name(f"{stem.name}.manifest")


def shown_alias(alias: str) -> str:
    """Return a table's alias in quotes for a message, cut where it is long."""
    return repr(alias if len(alias) <= SHOWN_ALIAS_CHARACTERS else alias[:SHOWN_ALIAS_CHARACTERS] + "...")
