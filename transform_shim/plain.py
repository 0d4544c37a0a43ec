"""A plain script's surroundings inside an IPython kernel: no notebook names, nobody at the keyboard."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any

__all__ = ["in_directory", "plain_surroundings"]

#: What IPython and ipykernel add to the builtins.
_NOTEBOOK_NAMES = ("get_ipython", "display", "__IPYTHON__")
#: Taken at import, which in the fork server is before ipykernel puts its own in their place.
_PLAIN_INPUT = builtins.input
_ABSENT: Any = object()


def _input(prompt: object = "", /) -> str:
    """input() where nobody answers."""
    print(prompt, end="", flush=True)  # noqa: T201 - this is what input() does
    raise EOFError("EOF when reading a line")


def _no_shell() -> None:
    """IPython's answer where there is no shell: libraries ask it whether they run in a notebook."""


@contextlib.contextmanager
def plain_surroundings() -> Iterator[None]:
    """Hide the notebook from the code that runs inside, and give it an empty standard input."""
    plain_input: Callable[..., str] = _PLAIN_INPUT if isinstance(_PLAIN_INPUT, BuiltinFunctionType) else _input
    changes: list[tuple[object, str, Any]] = [(builtins, name, _ABSENT) for name in _NOTEBOOK_NAMES]
    changes.append((builtins, "input", plain_input))
    changes.append((sys, "stdin", io.TextIOWrapper(io.BytesIO(), encoding="utf-8")))
    changes += [
        (sys.modules[name], "get_ipython", _no_shell)
        for name in ("IPython", "IPython.core.getipython")
        if name in sys.modules
    ]
    saved = [(owner, name, getattr(owner, name, _ABSENT)) for owner, name, _ in changes]
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
