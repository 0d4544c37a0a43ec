"""Show events of jobs: output as it arrives and, on a terminal, a line with the progress."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from gateway.client.log_follower import progress_from
from gateway.core.events import Displayed, Event, Finished, LogLine, Placed, Progress, StateChanged
from gateway.core.job import JobState

if TYPE_CHECKING:
    from rich.status import Status

#: They change the order in which a terminal shows the characters of a line (Unicode Standard Annex 9).
_DIRECTIONS = "\u202a-\u202e\u2066-\u2069"
#: Control characters but those of colours, bars and tabs.
_HARMFUL = re.compile(rf"(\x1b\[[0-9;]*m)|[\x00-\x07\x0a-\x0c\x0e-\x1f\x7f-\x9f{_DIRECTIONS}]")

#: The gateway's stage for the whole script, which reports the stages within it by its progress.
_SCRIPT = "execute"

#: Stages of the gateway with a progress, whose last part may come when the script runs already.
_OF_GATEWAY = ("fetch", "deliver")


class Display:
    """Shows events; use it in a ``with`` statement, which removes the progress line at the end.

    Parameters
    ----------
    job_stdout : text file
        For the job's standard output; its standard error goes to ours.
    progress : bool, optional
        Whether to show the progress line; default: on a terminal only.
    """

    def __init__(self, job_stdout: TextIO | None = None, *, progress: bool | None = None) -> None:
        self._job_stdout = job_stdout or sys.stdout
        self._wanted = sys.stderr.isatty() if progress is None else progress
        self._status: Status | None = None
        self._began = time.monotonic()
        self._text = "starting"
        self._stage = _SCRIPT
        self._done: dict[tuple[str, str | int | None], Progress] = {}

    def __enter__(self) -> Self:
        if self._wanted:
            from rich.console import Console
            from rich.status import Status

            self._status = Status(self._text, console=Console(stderr=True, emoji=False))
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the progress line; safe to call twice."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case LogLine(_, stream, message):
                self._line(self._job_stdout if stream == "stdout" else sys.stderr, message)
            case StateChanged(state, stage):
                self._text = self._stage = stage or state
            case Progress(stage):
                if self._stage == _SCRIPT and stage not in _OF_GATEWAY:
                    self._text = stage
                self._done[event.key] = event
            case Displayed() | Placed():
                pass  # the log has the text of a display; a command runs without a cluster
            case Finished():
                self._text = "done"
        self._refresh()

    def say(self, text: str) -> None:
        """Change the progress line."""
        self._text = text
        self._refresh()

    def _line(self, file: TextIO, message: str) -> None:
        is_terminal = file.isatty()
        if is_terminal:
            message = harmless(message)
        if self._status is None or not is_terminal:
            file.write(f"{message}\n")
            file.flush()
            return
        # rich moves the progress line on this terminal; it must not interpret the text as markup
        self._status.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _refresh(self) -> None:
        if self._status is None:
            return
        from rich.markup import escape

        seconds = time.monotonic() - self._began
        text = stage_text(self._text, self._done.values())
        self._status.update(f"{escape(text)} [dim]{seconds:.0f} s[/dim]")


class RunningJobs:
    """The jobs that run, in one line at the end of a terminal; nothing where standard error is not a terminal.

    Use it in a ``with`` statement, which removes the line at the end.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, str] = {}
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.status import Status

            self._status = Status("no job runs", console=Console(stderr=True, emoji=False))
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def take(self, jobs: Sequence[Mapping[str, Any]], *, is_all: bool) -> None:
        """Show these jobs of the stream, and of the others only those that still run."""
        if self._status is None:
            return
        from rich.markup import escape

        if is_all:
            self._jobs.clear()
        for job in jobs:
            if job["state"] == JobState.RUNNING:
                stage = job["stage"] or ""
                progress = [progress_from(each) for each in job["progress"]]
                if stage == _SCRIPT:
                    stage = next((each.stage for each in reversed(progress) if each.stage not in _OF_GATEWAY), stage)
                self._jobs[job["job_id"]] = f"{job['request_id']}: {stage_text(stage, progress)}"
            else:
                self._jobs.pop(job["job_id"], None)
        self._status.update(escape(printable(" | ".join(self._jobs.values()) or "no job runs")))

    def tell(self, text: str) -> None:
        """Write a line to standard error, above the line of the running jobs."""
        if self._status is not None:
            self._status.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            sys.stderr.write(f"{text}\n")

    def print(self, text: str) -> None:
        """Write a line to standard output, above the line of the running jobs."""
        if self._status is not None and sys.stdout.isatty():
            self._status.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()


def harmless(text: str) -> str:
    """Return a text of a job for a terminal: with colours, bars and tabs, without other control characters.

    Those change the terminal itself, its title or the clipboard, or clear what it showed.
    """
    return _HARMFUL.sub(lambda found: found[1] or "?", text)


def printable(text: str) -> str:
    """Return a text of a job without control characters, which a terminal would interpret."""
    return re.sub(rf"[\x00-\x1f\x7f-\x9f{_DIRECTIONS}]", "?", text)


def stage_text(stage: str, progress: Iterable[Progress]) -> str:
    """Return a stage and its progress."""
    return f"{stage} {' · '.join(_amounts([each for each in progress if each.stage == stage]))}".strip()


def _amounts(progress: Sequence[Progress]) -> list[str]:
    """Return the progress of one stage: of all its tables, or of each bar of the script."""
    amounts = []
    if total := sum(each.bytes or 0 for each in progress):
        amounts.append(f"{total / 1e6:,.1f} MB")
    if rows := sum(each.rows or 0 for each in progress):
        amounts.append(f"{rows:,} rows")
    bars = sorted((each for each in progress if each.bar is not None), key=lambda each: each.bar or 0)
    return amounts + [text for each in bars if (text := _bar_text(each))]


def _bar_text(bar: Progress) -> str:
    done = "" if bar.done is None else f"{bar.done:,}"
    if bar.done is not None and bar.total:
        done = f"{done} of {bar.total:,} ({100 * bar.done / bar.total:.0f} %)"
    return f"{bar.description} {done}".strip()


def stage_times(stages_seconds: dict[str, float]) -> str:
    """Return the durations of all but the shortest stages in one line, in the order of the stages."""
    shown = [f"{stage} {seconds:.2f}" for stage, seconds in stages_seconds.items() if seconds >= 0.005]
    return ", ".join(shown) + " s" if shown else "nothing took long"
