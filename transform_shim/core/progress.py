"""The progress of a long read or write: reported at most twice a second, and logged every ten seconds."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable

__all__ = ["INTERVAL_SECONDS", "LOG_FD_VARIABLE", "LOG_INTERVAL_SECONDS", "Progress", "Report"]

#: Seconds between two reports on one table.
INTERVAL_SECONDS = 0.5
#: Seconds between two lines about one table in the log; a shorter read or write leaves none.
LOG_INTERVAL_SECONDS = 10.0

#: Names the descriptor of the log pipe, by which a job reports; kernels of notebooks have none.
LOG_FD_VARIABLE = "TRANSFORM_LOG_FD"

Report = Callable[[bytes], None]


class Progress:
    """Counts rows and bytes of one table in one stage and reports them at intervals.

    Parameters
    ----------
    report : callable
        Called with one JSON object as bytes: ``{"stage", "table", "rows", "bytes"}``.
    stage : {'read', 'write'}
        The stage of the job.
    table : str
        Alias of the table; ``output`` for the result.
    """

    def __init__(self, report: Report | None, stage: str, table: str) -> None:
        self._report, self._stage, self._table = report, stage, table
        self._start_seconds = time.monotonic()
        self._next_seconds = self._start_seconds + INTERVAL_SECONDS
        self._next_line_seconds = self._start_seconds + LOG_INTERVAL_SECONDS
        self._has_reported = self._has_written = False
        self.rows = 0
        self.size_bytes = 0

    def advance(self, rows: int, end_bytes: int) -> None:
        """Count `rows` more rows; the position is now `end_bytes`."""
        self.rows += rows
        self.size_bytes = end_bytes
        if self._report is None:
            return
        now_seconds = time.monotonic()
        if now_seconds >= self._next_seconds:
            self._send()
            self._next_seconds = now_seconds + INTERVAL_SECONDS
        if now_seconds >= self._next_line_seconds:
            self._write_line("so far")
            self._next_line_seconds = now_seconds + LOG_INTERVAL_SECONDS

    def finish(self) -> None:
        """Report the end, if anything was reported before."""
        if self._has_reported:
            self._send()
        if self._has_written:
            self._write_line(f"in {time.monotonic() - self._start_seconds:.0f} s")

    def _send(self) -> None:
        self._has_reported = True
        value = {"stage": self._stage, "table": self._table, "rows": self.rows, "bytes": self.size_bytes}
        if self._report is not None:
            self._report(json.dumps(value).encode())

    def _write_line(self, end: str) -> None:
        self._has_written = True
        text = f"{self._stage} {self._table}: {self.rows:,} rows, {self.size_bytes / 1e6:,.0f} MB {end}"
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed or removed by user code
            sys.__stderr__.write(f"{text}\n")  # type: ignore[union-attr]
