"""The namespace of a plain script inside an IPython kernel: no notebook names, an empty standard input."""

from __future__ import annotations

import builtins
import contextlib
import io
import linecache
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any

from transform_shim.job.event_loop import no_event_loop
from transform_shim.job.script import SCRIPT_FILE, shown_text
from transform_shim.job.traceback_text import is_users, render

__all__ = ["in_directory", "user_namespace"]

#: The names that IPython and ipykernel add to the builtins, except `display`, which works in a job too.
_NOTEBOOK_NAMES = ("get_ipython", "__IPYTHON__")
#: Taken at import, which in the fork server is before ipykernel puts its own in their place.
_PLAIN_INPUT = builtins.input
_PLAIN_FORMAT = warnings.formatwarning
_PLAIN_FORMAT_FRAME = traceback.StackSummary.format_frame_summary
_ABSENT: Any = object()


def _input(prompt: object = "", /) -> str:
    """Print the prompt and raise EOFError, as input() does on an empty standard input."""
    print(prompt, end="", flush=True)  # noqa: T201 - this is what input() does
    raise EOFError("EOF when reading a line")


def _no_terminal(*_arguments: object, **_options: object) -> None:
    """Refuse breakpoint(): a debugger would read the end of the empty standard input and quit silently."""
    raise RuntimeError("breakpoint() needs a terminal, and a job has no terminal: use hold_minutes (--hold) instead")


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning with the path that a traceback shows, and not with the host's."""
    line = linecache.getline(filename, lineno) if line is None else line
    return _PLAIN_FORMAT(message, category, shown_text(filename), lineno, line)


def _format_frame(self: traceback.StackSummary, frame: traceback.FrameSummary, **options: Any) -> str:
    """Format a frame for tracebacks that the script itself prints, such as `traceback.print_exc()`."""
    return shown_text(_PLAIN_FORMAT_FRAME(self, frame, **options))


def _no_shell() -> None:
    """Return None, IPython's answer outside of a shell: libraries ask it whether they run in a notebook."""


def _say_of_thread(failed: threading.ExceptHookArgs) -> None:
    """Write what Python writes of an exception that ends a thread, with the traceback of a failed job."""
    error = failed.exc_value
    if error is None or isinstance(error, SystemExit):
        return
    first = error.__traceback__
    while first is not None and not is_users(first.tb_frame.f_code.co_filename):
        first = first.tb_next
    if first is not None:
        error.__traceback__ = first
    name = failed.thread.name if failed.thread is not None else threading.get_ident()
    print(f"Exception in thread {name}:\n{render(error)}", end="", file=sys.stderr)  # noqa: T201


@contextlib.contextmanager
def user_namespace(script_path: Path) -> Iterator[None]:
    """Hide the notebook and its event loop from the code that runs inside, and give it an empty standard input.

    Parameters
    ----------
    script_path : Path
        The script, which takes the place of the main program's file.
    """
    plain_input: Callable[..., str] = _PLAIN_INPUT if isinstance(_PLAIN_INPUT, BuiltinFunctionType) else _input
    changes: list[tuple[object, str, Any]] = [(builtins, name, _ABSENT) for name in _NOTEBOOK_NAMES]
    changes.append((builtins, "input", plain_input))
    changes.append((sys, "breakpointhook", _no_terminal))
    # `site` gives these to a plain script; a kernel has others, in its own namespace
    changes += [(builtins, name, sys.exit) for name in ("exit", "quit")]
    changes.append((warnings, "formatwarning", _format_warning))
    changes.append((traceback.StackSummary, "format_frame_summary", _format_frame))
    changes.append((threading, "excepthook", _say_of_thread))
    changes.append((sys, "argv", [SCRIPT_FILE]))
    # Without it a library takes the process for an interactive one: DuckDB would draw its progress into the log. It is
    # absolute: multiprocessing looks for another one below the directory in which the fork server was started.
    changes.append((sys.modules["__main__"], "__file__", str(script_path)))
    changes.append((sys, "stdin", io.TextIOWrapper(io.BytesIO(), encoding="utf-8")))
    changes += [
        (sys.modules[name], "get_ipython", _no_shell)
        for name in ("IPython", "IPython.core.getipython")
        if name in sys.modules
    ]
    saved = [(owner, name, getattr(owner, name, _ABSENT)) for owner, name, _ in changes]
    with no_event_loop():
        try:
            _apply(changes)
            yield
        finally:
            _apply(saved)


def _apply(changes: list[tuple[object, str, Any]]) -> None:
    for owner, name, value in changes:
        if value is not _ABSENT:
            setattr(owner, name, value)
        elif hasattr(owner, name):
            delattr(owner, name)


@contextlib.contextmanager
def in_directory(path: Path) -> Iterator[None]:
    """Make `path` the working directory and the first place that imports look in."""
    before = Path.cwd()
    saved_path, saved_flag = list(sys.path), sys.dont_write_bytecode
    os.chdir(path)
    sys.path.insert(0, str(path))
    sys.dont_write_bytecode = True  # a job's modules are imported once
    try:
        yield
    finally:
        sys.path[:] = saved_path
        sys.dont_write_bytecode = saved_flag
        with contextlib.suppress(FileNotFoundError):  # the notebook's own directory may be gone
            os.chdir(before)
