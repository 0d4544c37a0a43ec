"""The log of a run in the output of a cell, without the text of images and tables that the cell shows."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from transform_shim.displays.values import Display
from transform_shim.notebook.progressline import TransformLine

__all__ = ["LogPrinter"]


class LogPrinter:
    """Prints the log and the progress of a run as they arrive, and holds back the text of displays."""

    def __init__(self) -> None:
        self._held: list[str] = []
        self._progress = TransformLine()

    def __enter__(self) -> LogPrinter:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.finish()

    def take(self, event: Mapping[str, Any]) -> None:
        """Print an event of the companion, if it is a line of the log or progress of the transform."""
        if event["event"] != "log":
            self._progress.take(event)
        elif event["display"]:
            self._held.append(event["message"])
        else:
            print(event["message"], file=sys.stderr if event["stream"] == "stderr" else sys.stdout, flush=True)

    def finish(self, displays: Iterable[Display] = ()) -> None:
        """Print the text that was held back if there are no displays to show, because they could not be fetched."""
        self._progress.close()
        held, self._held = self._held, []
        if not any(displays):
            for line in held:
                print(line, flush=True)  # noqa: T201
