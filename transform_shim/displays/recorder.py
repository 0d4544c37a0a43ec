"""The file of a job's displays: one JSON object on each line, within bounds.

Each display is written at once, so that a job that is killed keeps what it has displayed. The gateway's side of the
same contract, with the same bounds, is `gateway.core.displays`, which the shim may not import.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transform_shim.core.notices import warn
from transform_shim.displays.values import Profile

__all__ = ["Recorder"]

#: The bounds of `gateway.core.displays`.
MOST_DISPLAYS = 20
MOST_DISPLAY_BYTES = 2 << 20
MOST_IMAGE_BYTES = 512 << 10
MOST_ROWS = 100
MOST_COLUMNS = 50
MOST_CHARACTERS = 1000
MOST_PROFILE_COLUMNS = 500


class Recorder:
    """Writes displays to a file.

    Parameters
    ----------
    path : Path
        Made with the first display.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left = MOST_DISPLAYS
        self._left_bytes = MOST_DISPLAY_BYTES
        self._is_cut = False

    def has_room(self) -> bool:
        """Return whether another display can be kept; the first one that cannot is logged."""
        if not self._left:
            self._cut()
        return self._left > 0

    def image(self, media_type: str, data: bytes, text: str) -> bool:
        """Keep an image, and return whether it is kept.

        Parameters
        ----------
        media_type : str
            ``image/png`` or ``image/svg+xml``.
        data : bytes
            The file.
        text : str
            The object as text.
        """
        if len(data) > MOST_IMAGE_BYTES:
            limit = _size(MOST_IMAGE_BYTES)
            warn(f"an image of {_size(len(data))} is not shown; the largest that is shown has {limit}")
            return False
        encoded = base64.b64encode(data).decode()
        return self._keep({"type": "image", "media_type": media_type, "data": encoded, "text": _cut(text)}, len(data))

    def table(self, header: Sequence[Sequence[str]], rows: Sequence[Sequence[str]], index_columns: int) -> bool:
        """Keep a table, and return whether it is kept; one that is too large is cut.

        Parameters
        ----------
        header, rows : sequence of sequence of str
            The cells by row.
        index_columns : int
            How many columns from the left name the rows.
        """
        table = {"header": _cells(header), "rows": _cells(rows)}
        cells = [cell for part in table.values() for row in part for cell in row]
        size_bytes = sum(len(cell.encode("utf-8", "replace")) for cell in cells)
        return self._keep({"type": "table", **table, "index_columns": min(index_columns, MOST_COLUMNS)}, size_bytes)

    def profile(self, profile: Profile) -> None:
        """Keep the profile of the result, which does not count as a display; columns beyond the most are left out.

        Parameters
        ----------
        profile : Profile
            Of the result.
        """
        columns = [
            {**asdict(column), "name": _cut(column.name), "base_type": _cut(column.base_type)}
            for column in profile.columns[:MOST_PROFILE_COLUMNS]
        ]
        self._write({"type": "profile", "rows": profile.rows, "columns": columns})

    def _keep(self, display: dict[str, Any], size_bytes: int) -> bool:
        if not self._left or size_bytes > self._left_bytes:
            self._cut()
            return False
        if not self._write(display):
            return False
        self._left -= 1
        self._left_bytes -= size_bytes
        return True

    def _write(self, display: dict[str, Any]) -> bool:
        line = json.dumps(display, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            is_new = not self._path.exists()
            # one write to the end, so that the displays of forked children are not mixed
            descriptor = os.open(
                self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660
            )
            try:
                if is_new:  # whatever umask the script has set: the gateway reads the file by its group
                    os.fchmod(descriptor, 0o660)
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as error:  # the disk, or the largest size of a file
            warn(f"a display could not be stored and is not shown: {error.strerror}")
            return False
        return True

    def _cut(self) -> None:
        if not self._is_cut:
            self._is_cut = True
            most = f"{MOST_DISPLAYS} images and tables, and {_size(MOST_DISPLAY_BYTES)} of them"
            warn(f"further images and tables are not shown; a job shows at most {most}")


def _cells(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[_cut(cell) for cell in row[:MOST_COLUMNS]] for row in rows[:MOST_ROWS]]


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB" if size_bytes >= 1 << 20 else f"{size_bytes / 1024:.0f} KiB"
