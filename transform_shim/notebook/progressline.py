"""Lines of progress in a cell's output: of the fetch of a table, and of a transform that reports its own."""

# mypy: disable-error-code="no-untyped-call"
# IPython has no annotations

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from transform_shim.bars.job_bars import amount

__all__ = ["ProgressLine", "TransformLine"]

#: A load that takes less shows no progress.
_PATIENCE_SECONDS = 0.7
_PROGRESS_SECONDS = 0.5


class _Line:
    """One line of a cell's output that changes, and is empty in the end."""

    def __init__(self) -> None:
        # taken now, because the displays of a transform that runs in this kernel are captured
        shell = InteractiveShell.instance() if InteractiveShell.initialized() else None
        self._publish: Any = None if shell is None else shell.display_pub.publish
        self._display_id = ""

    def close(self) -> None:
        """Empty the line."""
        if self._display_id:
            self.update("")

    def update(self, text: str) -> None:
        if self._publish is None:
            return
        is_first, self._display_id = not self._display_id, self._display_id or uuid.uuid4().hex
        self._publish({"text/plain": text}, transient={"display_id": self._display_id}, update=not is_first)


class ProgressLine(_Line):
    """One line with the size of a table that has arrived, if the fetch takes long."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._shown_at = time.monotonic() + _PATIENCE_SECONDS - _PROGRESS_SECONDS

    def take(self, event: dict[str, Any]) -> None:
        """Show the progress of an event."""
        now = time.monotonic()
        if event["event"] != "progress" or not event.get("bytes") or now - self._shown_at < _PROGRESS_SECONDS:
            return
        self._shown_at = now
        from transform_shim.notebook.display import size

        self.update(f"{self._name}: {size(event['bytes'])} …")


class TransformLine(_Line):
    """One line with the progress that a transform reports."""

    def __init__(self) -> None:
        super().__init__()
        self._bars: dict[int, str] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        """Show the progress of an event of the companion, if it is that of a transform."""
        if event["event"] == "progress" and event.get("bar") is not None:
            text = f"{event.get('description') or ''} {amount(event.get('done'), event.get('total'))}"
            self._bars[event["bar"]] = text.strip()
            self.update(" · ".join(text for _, text in sorted(self._bars.items()) if text))
