"""What a person at a notebook did that cannot be done."""

from __future__ import annotations

__all__ = ["NotebookError"]


class NotebookError(Exception):
    """A request that makes no sense or cannot be met; the text says in plain words why, and what would do.

    A transform that fails is none: its result says so.
    """
