"""Lines for the user in the job's log: on stderr, because Metabase's contract fixes stdout."""

from __future__ import annotations

import contextlib
import sys

__all__ = ["warn"]


def warn(text: str) -> None:
    """Write one line to stderr; user code that has closed it loses the line."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.write(f"WARNING: {text}\n")
