"""Convert files that a job cannot read into files that it can."""

from __future__ import annotations

import shutil
from itertools import count
from pathlib import Path

from gateway.table_files.conversion import ConversionError, converted
from gateway.table_files.kinds import FileKind, kind_of
from gateway.table_files.unpacking import UnpackingError, unpack

#: Time of change, inode and size: an editor may rewrite a file or replace it by another.
FileVersion = tuple[int, int, int]


def file_version(path: Path) -> FileVersion:
    """Return a version that changes when a file is written or replaced.

    Raises
    ------
    OSError
        There is no such file.
    """
    state = path.stat()
    return state.st_mtime_ns, state.st_ino, state.st_size


class UnreadableTable(ValueError):
    """A table file cannot be read; the text names it and the reason."""


class ReadableFiles:
    """Unpacks and converts table files, each once until it changes.

    Parameters
    ----------
    directory : Path
        An empty directory for the converted files.
    """

    def __init__(self, directory: Path) -> None:
        self._places = (directory / str(number) for number in count())
        self._made: dict[Path, tuple[FileVersion, Path]] = {}

    def readable(self, path: Path) -> Path:
        """Return the file, or its converted copy.

        Raises
        ------
        UnreadableTable
            The ending is unknown, or the content does not match the ending.
        OSError
            The file cannot be read, or its copy not written.
        """
        try:
            kind = kind_of(path)
        except ValueError as error:
            raise UnreadableTable(str(error)) from None
        if kind.is_plain:
            return path
        version = file_version(path)
        known_version, made = self._made.get(path, (None, path))
        if version == known_version:
            return made
        if known_version is not None:
            shutil.rmtree(made.parent, ignore_errors=True)
        place = next(self._places)
        place.mkdir()
        try:
            made = _make(path, kind, place)
        except (ConversionError, UnpackingError) as error:
            raise UnreadableTable(f"{path}: {error}") from None
        self._made[path] = (version, made)
        return made


def _make(path: Path, kind: FileKind, place: Path) -> Path:
    plain = path
    if kind.compression is not None:
        plain = place / f"unpacked.{kind.data_format}"
        unpack(path, kind.compression, plain)
    if kind.shape == "plain":
        return plain
    table = place / "converted"
    data_format = converted(plain, table)
    if data_format is not None:
        return table.rename(table.with_suffix(f".{data_format}"))
    if kind.shape == "workbook":
        raise ConversionError("not an Excel workbook (.xlsx)")
    # JSON lines in a file with the ending .json
    lines = place / "lines.jsonl"
    if plain is path:
        shutil.copyfile(path, lines)
    else:
        plain.rename(lines)
    return lines
