"""The error of requests in a notebook."""

from __future__ import annotations

__all__ = ["NotebookError"]


class NotebookError(Exception):
    """A request that makes no sense or cannot be met; the text gives the reason and a remedy.

    A failing transform does not raise this: its `TransformRun` has the failure.
    """
