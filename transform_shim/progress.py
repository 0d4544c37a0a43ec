"""How far a long read or write has come, told at most twice a second."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

__all__ = ["INTERVAL_SECONDS", "Progress", "Report"]

#: Seconds between two reports on one table.
INTERVAL_SECONDS = 0.5

Report = Callable[[bytes], None]


class Progress:
    """Counts rows and bytes of one table in one stage and reports them now and then.

    Parameters
    ----------
    report : callable
        Takes one JSON object as bytes: ``{"stage", "table", "rows", "bytes"}``.
    stage : {'read', 'write'}
        What is going on.
    table : str
        Alias of the table; ``output`` for the result.
    """

    def __init__(self, report: Report | None, stage: str, table: str) -> None:
        self._report, self._stage, self._table = report, stage, table
        self._next_seconds = time.monotonic() + INTERVAL_SECONDS
        self._has_reported = False
        self.rows = 0
        self.size_bytes = 0

    def advance(self, rows: int, end_bytes: int) -> None:
        """`rows` more rows are done; the position is now `end_bytes`."""
        self.rows += rows
        self.size_bytes = end_bytes
        if self._report is not None and time.monotonic() >= self._next_seconds:
            self._send()
            self._next_seconds = time.monotonic() + INTERVAL_SECONDS

    def finish(self) -> None:
        """Report the end, if anything was reported before."""
        if self._has_reported:
            self._send()

    def _send(self) -> None:
        self._has_reported = True
        value = {"stage": self._stage, "table": self._table, "rows": self.rows, "bytes": self.size_bytes}
        if self._report is not None:
            self._report(json.dumps(value).encode())
