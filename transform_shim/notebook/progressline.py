"""How much of a table has come, shown while it comes."""

# mypy: disable-error-code="no-untyped-call"
# IPython's display has no annotations

from __future__ import annotations

import time
from typing import Any

from IPython.display import display

__all__ = ["ProgressLine"]

#: A load that takes less shows no progress.
_PATIENCE_SECONDS = 0.7
_PROGRESS_SECONDS = 0.5


class ProgressLine:
    """One line that says how much of a table has come, where that takes long."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._shown_at = time.monotonic() + _PATIENCE_SECONDS - _PROGRESS_SECONDS
        self._handle: Any = None

    def take(self, event: dict[str, Any]) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if event["event"] != "progress" or not event.get("bytes") or now - self._shown_at < _PROGRESS_SECONDS:
            return
        self._shown_at = now
        from transform_shim.notebook.display import size

        self._update(f"{self._name}: {size(event['bytes'])} …")

    def close(self) -> None:
        """Empty the line."""
        if self._handle is not None:
            self._update("")

    def _update(self, text: str) -> None:
        data = {"text/plain": text}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)
