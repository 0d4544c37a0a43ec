"""The progress that a transform reports about itself, with `progress` or with tqdm.

A job has a few numbered bars. A new bar takes the lowest free number, so a loop inside another one always has the same
number, however often it begins. A bar reports at most twice a second and writes a line to the log every ten seconds.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from transform_shim.core.progress import INTERVAL_SECONDS, LOG_INTERVAL_SECONDS, Report

__all__ = ["MOST_BARS", "Bar", "ProgressBar", "is_reporting", "progress", "reporting"]

#: Number of bars that are shown at the same time; further ones are not.
MOST_BARS = 5
_DESCRIPTION_CHARACTERS = 100

T = TypeVar("T")


class _JobBars:
    """The numbers of the running job's bars, and the time of each bar's next report."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.process = os.getpid()
        self.free = list(range(MOST_BARS))  # a heap, whose functions are atomic for threads
        self.next_seconds = [0.0] * MOST_BARS

    def take(self) -> int | None:
        try:
            return heapq.heappop(self.free)
        except IndexError:
            return None


_job: _JobBars | None = None


@contextlib.contextmanager
def reporting(report: Report | None) -> Iterator[None]:
    """Send the progress of the code inside to `report`; without one, nowhere."""
    global _job
    before, _job = _job, None if report is None else _JobBars(report)
    try:
        yield
    finally:
        _job = before


def is_reporting() -> bool:
    """Return whether there is a job that bars belong to."""
    return _job is not None


class Bar:
    """One bar of the running job; without a job, or beyond the most bars, it shows nothing."""

    def __init__(self) -> None:
        self._job = _job
        self._number = None if _job is None else _job.take()
        self._start_seconds = time.monotonic()
        self._next_line_seconds = self._start_seconds + LOG_INTERVAL_SECONDS
        self._has_reported = self._has_written = False

    def show(self, done: Any, total: Any, description: str, *, is_last: bool = False) -> None:
        """Report how much is done, unless the last report was a moment ago."""
        job, number = self._job, self._number
        # a forked child would draw over the bars of its parent
        if job is None or number is None or job is not _job or os.getpid() != job.process:
            return
        now_seconds = time.monotonic()
        if now_seconds >= job.next_seconds[number] or (is_last and self._has_reported):
            job.next_seconds[number] = now_seconds + INTERVAL_SECONDS
            self._has_reported = True
            value = {
                "stage": "transform",
                "bar": number,
                "description": description[:_DESCRIPTION_CHARACTERS],
                "done": _number(done),
                "total": _number(total),
            }
            job.report(json.dumps(value).encode())
        if now_seconds >= self._next_line_seconds or (is_last and self._has_written):
            self._next_line_seconds = now_seconds + LOG_INTERVAL_SECONDS
            self._has_written = True
            end = f"in {now_seconds - self._start_seconds:.0f} s" if is_last else "so far"
            _write_line(f"{description or 'transform'}: {amount(_number(done), _number(total))} {end}")

    def close(self) -> None:
        """Release the number; safe to call twice."""
        number, self._number = self._number, None
        if self._job is not None and number is not None:
            heapq.heappush(self._job.free, number)


class ProgressBar(Generic[T]):
    """Counts what is done; see `progress`."""

    def __init__(self, iterable: Iterable[T] | None, total: float | None, description: str) -> None:
        self._bar = Bar()  # first: __del__ closes it, also when what follows raises
        self._iterable = iterable
        self._total, self._description = total, str(description)
        if total is None and iterable is not None:
            with contextlib.suppress(Exception):  # the total is optional, and __len__ may be the user's code
                self._total = len(iterable)  # type: ignore[arg-type]
        self._done: float = 0
        self._bar.show(0, self._total, self._description)
        self._next_seconds = 0.0

    def update(self, count: float = 1) -> None:
        """Count `count` more as done."""
        self._done += count
        if time.monotonic() >= self._next_seconds:
            self._show()

    def close(self) -> None:
        """Report the end; safe to call twice."""
        self._bar.show(self._done, self._total, self._description, is_last=True)
        self._bar.close()

    def __iter__(self) -> Iterator[T]:
        if self._iterable is None:
            raise TypeError("progress() without an iterable counts by update() and cannot be iterated over")
        try:
            for value in self._iterable:
                yield value
                self._done += 1
                if time.monotonic() >= self._next_seconds:
                    self._show()
        finally:
            self.close()

    def _show(self) -> None:
        self._next_seconds = time.monotonic() + INTERVAL_SECONDS / 5
        self._bar.show(self._done, self._total, self._description)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def progress(
    iterable: Iterable[T] | None = None, *, total: float | None = None, description: str = ""
) -> ProgressBar[T]:
    """Show how far a transform is: in the gateway's status, on its page, on the command line and in the notebook.

    Parameters
    ----------
    iterable : iterable, optional
        Its values are yielded and counted. Without one, ``update(count)`` counts.
    total : float, optional
        The count at the end. By default the length of the iterable, if it has one.
    description : str, optional
        Shown before the numbers.

    Returns
    -------
    ProgressBar
        An iterable, and a context manager with ``update``.
    """
    return ProgressBar(iterable, total, description)


def amount(done: float | None, total: float | None) -> str:
    """Return done and total as a text for users."""
    if done is None:
        return ""
    if not total:
        return f"{done:,}"
    return f"{done:,} of {total:,} ({100 * done / total:.0f} %)"


def _number(value: Any) -> float | None:
    """Return a number as JSON has it; a script may count with anything."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number


def _write_line(text: str) -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # closed or removed by user code
        sys.__stderr__.write(f"{text}\n")  # type: ignore[union-attr]
