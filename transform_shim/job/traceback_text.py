"""The traceback of a failed job: the user's frames first, library frames folded, paths as in the request."""

from __future__ import annotations

import itertools
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transform_shim.job.script import quotes_line, shown_text

__all__ = ["is_ours", "is_users", "render", "users_place"]

_SHIM_DIR = f"{Path(__file__).parents[1]}/"
_PACKAGE_DIRS = tuple(
    sorted({f"{sysconfig.get_path(name)}/" for name in ("purelib", "platlib", "stdlib", "platstdlib")}, key=len)[::-1]
)
#: The folders in which a system's Python keeps packages, whatever sysconfig says.
_PACKAGE_FOLDERS = ("/site-packages/", "/dist-packages/")
#: Cython compiles relative paths into its modules.
_CYTHON_SUFFIXES = (".pyx", ".pxi", ".pxd")


def is_ours(file_name: str) -> bool:
    """Return whether a frame's file belongs to the shim or to the import machinery, and not to the user."""
    return file_name.startswith((_SHIM_DIR, "<frozen importlib"))


def is_users(file_name: str) -> bool:
    """Return whether a frame's file is code of the user: the script, its library, a cell, or a text that was run."""
    if is_ours(file_name) or file_name.startswith("<frozen ") or file_name.endswith(_CYTHON_SUFFIXES):
        return False
    return not (file_name.startswith(_PACKAGE_DIRS) or any(folder in file_name for folder in _PACKAGE_FOLDERS))


def render(error: BaseException, *, fold: bool = True) -> str:
    """Render the traceback without frames of the shim.

    Causes and contexts in which the user's code has a part are kept; the others become one line below the user's
    frames.

    Parameters
    ----------
    error : BaseException
        With its traceback.
    fold : bool
        Whether library frames are folded; not for a failure of the shim, which its developers look at.
    """
    rendered = traceback.TracebackException.from_exception(error, compact=True)
    _prepare(rendered, fold, set())
    return shown_text("".join(rendered.format()))


def users_place(error: BaseException) -> str:
    """Return where the user's code failed, as ``in transform() (script.py, line 4)``; empty if it has no frame."""
    frames = [
        (frame.f_code.co_filename, line, frame.f_code.co_name)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if is_users(frame.f_code.co_filename)
    ]
    if not frames:
        return ""
    file_name, line, _ = frames[-1]
    # a lambda or a comprehension says less than the function around it
    function = next((name for _, _, name in reversed(frames) if not name.startswith("<")), "")
    place = f"({shown_text(file_name)}, line {line})"
    return f"in {function}() {place}" if function else place


class _FoldedStack(traceback.StackSummary):
    """Frames that are formatted with one line for each run of library frames."""

    #: A line for the causes that are not shown, or empty.
    cause = ""

    def format(self, **options: Any) -> list[str]:
        lines: list[str] = []
        for users, run in itertools.groupby(self, key=lambda frame: is_users(frame.filename)):
            frames = list(run)
            if users:
                lines += traceback.StackSummary.from_list(frames).format(**options)
            else:
                lines.append(f"  [{_counted(frames)}]\n")
        return lines + ([self.cause] if self.cause else [])


def _prepare(rendered: traceback.TracebackException, fold: bool, seen: set[int]) -> None:
    if id(rendered) in seen:
        return
    seen.add(id(rendered))
    hidden = ""
    for name in ("__cause__", "__context__"):
        other = getattr(rendered, name)
        if other is not None and fold and not _has_users_frame(other):
            if name == "__cause__" or not rendered.__suppress_context__:
                hidden = hidden or _as_one_line(other)
            setattr(rendered, name, None)
        elif other is not None:
            _prepare(other, fold, seen)
    for other in rendered.exceptions or ():
        _prepare(other, fold, seen)
    kept = [frame for frame in rendered.stack or () if not is_ours(frame.filename)]
    # without frames there is no "Traceback" line either, as Python prints a syntax error of a script
    stack: traceback.StackSummary | None = None
    if kept:
        stack = _FoldedStack(kept) if fold else traceback.StackSummary(kept)
        if isinstance(stack, _FoldedStack):
            stack.cause = hidden
    rendered.stack = stack  # type: ignore[assignment]


def _has_users_frame(rendered: traceback.TracebackException) -> bool:
    return any(
        any(is_users(frame.filename) for frame in each.stack or ())
        or bool(each.exceptions)
        or quotes_line(str(each))  # an error in a process of a pool
        for each in _chain(rendered)
    )


def _as_one_line(rendered: traceback.TracebackException) -> str:
    """Return the first error of a chain of exceptions that are all a library's own, and its depth."""
    first = list(_chain(rendered))[-1]
    said = "".join(first.format_exception_only()).strip().split("\n")[0]
    frames = list(first.stack or ())  # none, if it was made and not raised
    return f"  [caused by {said}: {_counted(frames)}]\n" if frames else f"  [caused by {said}]\n"


def _chain(rendered: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    seen: set[int] = set()
    current: traceback.TracebackException | None = rendered
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _counted(frames: list[Any]) -> str:
    packages = dict.fromkeys(_package(frame.filename) for frame in frames)
    return f"{len(frames)} frame{'s' if len(frames) != 1 else ''} in {', '.join(packages)}"


def _package(file_name: str) -> str:
    """Return the package of a library's file."""
    for folder in _PACKAGE_FOLDERS:
        if folder in file_name:
            file_name = file_name.rpartition(folder)[2]
    for folder in _PACKAGE_DIRS:
        file_name = file_name.removeprefix(folder)
    return file_name.lstrip("<").split("/")[0].split(" ")[-1].removesuffix(".py").rstrip(">") or "a library"
