"""A job's events for a person: its output as it comes, and on a terminal one line that says how far it is."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from gateway.jobs.events import Event, Finished, LogLine, Progress, StateChanged

if TYPE_CHECKING:
    from rich.status import Status


class Display:
    """Shows events; use as ``with``, which takes the progress line away at the end.

    Parameters
    ----------
    job_stdout : text file
        Where the job's standard output goes; its standard error goes to ours.
    progress : bool, optional
        Whether to show the progress line; by default on a terminal only.
    """

    def __init__(self, job_stdout: TextIO | None = None, *, progress: bool | None = None) -> None:
        self._job_stdout = job_stdout or sys.stdout
        self._wanted = sys.stderr.isatty() if progress is None else progress
        self._status: Status | None = None
        self._began = time.monotonic()
        self._text = "starting"
        self._done: dict[tuple[str, str | None], Progress] = {}

    def __enter__(self) -> Self:
        if self._wanted:
            from rich.console import Console
            from rich.status import Status

            self._status = Status(self._text, console=Console(stderr=True))
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the progress line away; closing again is harmless."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case LogLine(_, stream, message):
                self._line(self._job_stdout if stream == "stdout" else sys.stderr, message)
            case StateChanged(state, stage):
                self._text = stage or state
            case Progress(stage, table):
                self._text = stage
                self._done[stage, table] = event
            case Finished():
                self._text = "done"
        self._refresh()

    def say(self, text: str) -> None:
        """Change the progress line."""
        self._text = text
        self._refresh()

    def _line(self, file: TextIO, message: str) -> None:
        if self._status is None or not file.isatty():
            file.write(f"{message}\n")
            file.flush()
            return
        # the progress line stands on this terminal: it must step aside, and not take the text for markup
        self._status.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _refresh(self) -> None:
        if self._status is None:
            return
        now = [p for (stage, _), p in self._done.items() if stage == self._text]
        amounts = []
        if total := sum(p.bytes or 0 for p in now):
            amounts.append(f"{total / 1e6:,.1f} MB")
        if rows := sum(p.rows or 0 for p in now):
            amounts.append(f"{rows:,} rows")
        seconds = time.monotonic() - self._began
        self._status.update(f"{self._text} {' · '.join(amounts)} [dim]{seconds:.0f} s[/dim]")


def stage_times(stages_seconds: dict[str, float]) -> str:
    """Return times by stage in one line, the longest stages' names in the order they came."""
    shown = [f"{stage} {seconds:.2f}" for stage, seconds in stages_seconds.items() if seconds >= 0.005]
    return ", ".join(shown) + " s" if shown else "nothing took long"
