"""Large text tables, parsed once for all runs of `run --watch`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gateway.core.formats import ENDINGS
from gateway.table_files.readable import file_version

#: A process that parses takes half a second to start; a job parses this much in less.
WORTHWHILE_BYTES = 8 << 20
#: The parsed form is mostly two to four times as large, and nine times if most cells are empty; a gateway takes 5 GB
#: (MAX_UPLOAD_BYTES) by default.
MOST_BYTES = 1 << 30
MOST_PARSED_BYTES = 4 << 30
PARSE_SECONDS = 600
_PARSER = "transform_shim.reading.parse_table"


@dataclass(frozen=True, slots=True)
class _Parsed:
    version: tuple[object, ...]
    path: Path


class ParsedTables:
    """Keeps the parsed form of each table until its file or its manifest changes.

    The parser is the one that jobs use, so a job gets the same values. A table that it cannot read, or about which it
    has a warning, stays as it is: the job reports this in its log.

    Parameters
    ----------
    directory : Path
        An empty directory for the parsed tables.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[str, _Parsed] = {}

    def parsed(self, name: str, path: Path, manifest: Path | None) -> Path:
        """Return the file for a job to read: the table's own, or its parsed form.

        Raises
        ------
        OSError
            The file cannot be read.
        """
        version = (path, file_version(path), manifest and file_version(manifest))
        known = self._known.get(name)
        if known is None or known.version != version:
            number = list(self._known).index(name) if known else len(self._known)
            known = self._known[name] = _Parsed(version, self._parse(path, manifest, number))
        return known.path

    def _parse(self, path: Path, manifest: Path | None, number: int) -> Path:
        data_format = ENDINGS.get(path.suffix.lower())
        if data_format not in ("csv", "jsonl") or not WORTHWHILE_BYTES <= path.stat().st_size <= MOST_BYTES:
            return path
        target = self._directory / f"{number}.arrow"
        target.unlink(missing_ok=True)
        command = [sys.executable, "-P", "-m", _PARSER, data_format, str(path), str(manifest or ""), str(target)]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PARSE_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return path
        if done.returncode or done.stderr or target.stat().st_size > MOST_PARSED_BYTES:
            target.unlink(missing_ok=True)
            return path
        return target
