"""What Tab offers behind the magics: table names, files, options."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from transform_shim.notebook.errors import NotebookError

__all__ = ["register_completion"]

_OPTIONS = {
    "%tables": ("--clear",),
    "%table": ("--manifest", "--format", "--drop"),
    "%submit": ("--timeout", "--hold", "--output-format"),
    "%%submit": ("--timeout", "--hold", "--output-format"),
    "%%transform": ("--timeout", "--here", "--hold", "--output-format"),
    "%%library": (),
}
_FORMATS = ("jsonl", "csv", "parquet", "arrow")


def register_completion(shell: Any) -> None:
    """Complete what follows each of our magics."""
    for name in _OPTIONS:
        shell.set_hook("complete_command", complete, str_key=name)


def complete(shell: Any, event: Any) -> list[str]:
    """Return what the word at the cursor may become."""
    words = event.line[: event.line.rfind(event.symbol)].split() if event.symbol else event.line.split()
    magic, before = words[0], words[1:]
    start = _word(event)
    if before and before[-1] in ("--format", "--output-format"):
        return [name for name in _FORMATS if name.startswith(start)]
    if start.startswith("-"):
        return [option for option in _OPTIONS.get(magic, ()) if option.startswith(start)]
    if magic != "%table":
        return []
    if before and before[-1] == "--drop":
        return [name for name in _loaded() if name.startswith(start)]
    if not before:
        return [name for name in _loaded() if name.startswith(start)]
    if start.startswith("@"):
        return [f"@{name}" for name in _frames(shell) if name.startswith(start[1:])]
    return _files(start, event.symbol)


def _word(event: Any) -> str:
    """The whole word up to the cursor: readline's own symbol begins anew at each slash and colon."""
    until = event.text_until_cursor if hasattr(event, "text_until_cursor") else event.line
    return "" if until[-1:].isspace() else until.split()[-1]


def _loaded() -> list[str]:
    functions = sys.modules.get("transform_shim.notebook.functions")
    return [] if functions is None else list(functions.tables)


def _frames(shell: Any) -> list[str]:
    return [
        name
        for name, value in shell.user_ns.items()
        if not name.startswith("_") and any("__arrow_c_stream__" in vars(base) for base in type(value).__mro__)
    ]


def _files(start: str, symbol: str) -> list[str]:
    """Names of files of the user's, which only the companion can see; `symbol` is what the answer takes the place of."""
    from transform_shim.notebook.companion import connect

    kept = len(start) - len(symbol)
    with contextlib.suppress(NotebookError):
        return [name[kept:] for name in connect().ask("files", prefix=start)["names"]]
    return []
