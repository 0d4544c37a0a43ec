"""Completion (Tab) behind the magics: table names, files, options."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from transform_shim.core.formats import FORMATS
from transform_shim.notebook.errors import NotebookError

__all__ = ["register_completion"]

_OPTIONS = {
    "%tables": ("--clear",),
    "%table": ("--manifest", "--format", "--drop"),
    "%submit": ("--timeout", "--hold", "--output-format"),
    "%%submit": ("--timeout", "--hold", "--output-format"),
    "%%transform": ("--timeout", "--here", "--hold", "--output-format", "--out"),
    "%%library": (),
}


def register_completion(shell: Any) -> None:
    """Complete the arguments of each of our magics."""
    for name in _OPTIONS:
        shell.set_hook("complete_command", complete, str_key=name)


def complete(shell: Any, event: Any) -> list[str]:
    """Return the completions of the symbol at the cursor.

    IPython's symbol is the end of a word, from its last delimiter (``@`` and ``:`` are such) to the cursor.
    """
    until = event.text_until_cursor
    words = until.split()
    start = "" if until[-1:].isspace() else words.pop()
    kept = len(start) - len(event.symbol)
    return [name[kept:] for name in _choices(shell, words[0], words[1:], start) if name.startswith(start)]


def _choices(shell: Any, magic: str, before: Sequence[str], start: str) -> Iterable[str]:
    """Return whole words that may follow `before`; the caller drops those that do not begin with `start`."""
    if before and before[-1] in ("--format", "--output-format"):
        return tuple(FORMATS)
    if start.startswith("-"):
        return _OPTIONS.get(magic, ())
    if magic != "%table":
        return ()
    if not before or before[-1] == "--drop":
        return _loaded()
    if start.startswith("@"):
        return [f"@{name}" for name in _frames(shell)]
    return _files(start)


def _loaded() -> list[str]:
    functions = sys.modules.get("transform_shim.notebook.functions")
    return [] if functions is None else list(functions.tables)


def _frames(shell: Any) -> list[str]:
    return [name for name, value in shell.user_ns.items() if not name.startswith("_") and _is_frame(type(value))]


def _is_frame(kind: type) -> bool:
    """Return whether %table accepts a value of this class: not a single column, but a lazy frame."""
    has_stream = any("__arrow_c_stream__" in vars(base) for base in kind.__mro__)
    return kind.__name__ == "LazyFrame" or (has_stream and kind.__name__ not in ("Series", "ChunkedArray"))


def _files(start: str) -> list[str]:
    """Return the files of the user's that begin so; only the companion can see them."""
    from transform_shim.notebook.companion import connect

    with contextlib.suppress(NotebookError):
        return list(connect().ask("files", prefix=start)["names"])
    return []
