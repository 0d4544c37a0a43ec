"""The traceback of a failed job: the user's frames first, library frames folded, paths as in the request."""

from __future__ import annotations

import itertools
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from transform_shim.job.script import SCRIPT_FILE, shown_path

__all__ = ["is_ours", "is_users", "render", "script_line", "users_place"]

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
    return "".join(rendered.format())


def script_line(trace: TracebackType | None) -> int | None:
    """Return the innermost line of the script itself."""
    # without a summary of each frame: a recursion may have a million
    places = ((frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(trace))
    lines = [line for file_name, line in places if file_name.rpartition("/")[2] == SCRIPT_FILE]
    return lines[-1] if lines else None


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
    place = f"({shown_path(file_name)}, line {line})"
    return f"in {function}() {place}" if function else place


class _FoldedStack(traceback.StackSummary):
    """Frames that are formatted with one line for each run of library frames."""

    #: A line for the causes that are not shown, or empty.
    cause = ""

    def format(self, **options: Any) -> list[str]:
        lines: list[str] = []
        for users, run in itertools.groupby(self, key=lambda frame: is_users(_real_path(frame))):
            frames = list(run)
            if users:
                lines += traceback.StackSummary.from_list(frames).format(**options)
            else:
                lines.append(f"  [{_counted(frames)}]\n")
        return lines + ([self.cause] if self.cause else [])


class _Frame(traceback.FrameSummary):
    """A frame that is shown with the path of the request."""

    __slots__ = ("real_path",)
    real_path: str


def _prepare(rendered: traceback.TracebackException, fold: bool, seen: set[int]) -> None:
    if id(rendered) in seen:
        return
    seen.add(id(rendered))
    if getattr(rendered, "filename", None):  # of a SyntaxError
        rendered.filename = shown_path(str(rendered.filename))
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
    kept = [_shown(frame) for frame in rendered.stack or () if not is_ours(frame.filename)]
    # without frames there is no "Traceback" line either, as Python prints a syntax error of a script
    stack: traceback.StackSummary | None = None
    if kept:
        stack = _FoldedStack(kept) if fold else traceback.StackSummary(kept)
        if isinstance(stack, _FoldedStack):
            stack.cause = hidden
    rendered.stack = stack  # type: ignore[assignment]


def _shown(frame: traceback.FrameSummary) -> _Frame:
    _ = frame.line  # is looked up by the real path, once
    shown = _Frame.__new__(_Frame)
    for kind in traceback.FrameSummary.__mro__:
        for name in getattr(kind, "__slots__", ()):
            if hasattr(frame, name):
                setattr(shown, name, getattr(frame, name))
    shown.real_path, shown.filename = frame.filename, shown_path(frame.filename)
    return shown


def _has_users_frame(rendered: traceback.TracebackException) -> bool:
    return any(
        any(is_users(frame.filename) for frame in each.stack or ()) or bool(each.exceptions)
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


def _real_path(frame: traceback.FrameSummary) -> str:
    return str(getattr(frame, "real_path", frame.filename))


def _counted(frames: list[Any]) -> str:
    packages = dict.fromkeys(_package(_real_path(frame)) for frame in frames)
    return f"{len(frames)} frame{'s' if len(frames) != 1 else ''} in {', '.join(packages)}"


def _package(file_name: str) -> str:
    """Return the package of a library's file."""
    for folder in _PACKAGE_FOLDERS:
        if folder in file_name:
            file_name = file_name.rpartition(folder)[2]
    for folder in _PACKAGE_DIRS:
        file_name = file_name.removeprefix(folder)
    return file_name.lstrip("<").split("/")[0].split(" ")[-1].removesuffix(".py").rstrip(">") or "a library"
