"""A transform in the notebook's own kernel: the shim of a job, without a fresh process."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO, cast

from transform_shim.core.progress import Report
from transform_shim.core.table_file import TableFile
from transform_shim.displays.capture import captured_displays
from transform_shim.displays.values import Displays, StageSpan, read_displays
from transform_shim.job import run
from transform_shim.job.post_mortem import leave_to_debugger
from transform_shim.job.script import SCRIPT_FILE, load_script, write_modules
from transform_shim.job.user_namespace import in_directory, user_namespace
from transform_shim.notebook.options import RunOptions
from transform_shim.notebook.progressline import TransformLine
from transform_shim.notebook.run_outcome import LogLine, StreamName, TransformRun

__all__ = ["define_script", "run_here", "script_names"]

_WHERE = "this kernel"
#: It looks for the shell once, when it is imported.
_INLINE_BACKEND = "matplotlib_inline.backend_inline"


def run_here(
    code: str, library: Mapping[str, str], tables: Sequence[TableFile], options: RunOptions, *, is_shown: bool
) -> TransformRun:
    """Run a script as a job would, in this process.

    The frame of a failure stays, as ``sys.last_traceback`` and its like: ``%debug`` shows it. There is no timeout
    here; Ctrl-C interrupts. `is_shown` is whether the caller shows what the script displays.
    """
    place = Path(tempfile.mkdtemp(prefix="here-"))
    output_format = options.output_format or "jsonl"
    output_path, manifest_path, result_path = place / "output", place / "manifest.json", place / "result.json"
    displays_path = place / "displays.jsonl"
    request = {
        "version": 1,
        "code": code,
        "library": dict(library),
        "tables": [_table(file) for file in tables],
        "output_format": output_format,
        "output_path": str(output_path),
        "manifest_path": str(manifest_path),
        "result_path": str(result_path),
        "displays_path": str(displays_path),
        "work_dir": str(Path.cwd()),
        "limits": _limits(),
        "profile": options.profile,
    }
    began = time.monotonic()
    displays = Displays()
    progress = TransformLine()
    # not the exception itself: the frames of the new one lead to this frame, and so would keep those of all before it
    earlier = id(getattr(sys, "last_value", None))
    try:
        with _recorded(shows_displays=is_shown) as recorder, _inline_figures():
            run.run_job(json.dumps(request), _report_to(progress) if is_shown else None)
        seconds = time.monotonic() - began
        displays = read_displays(displays_path)
    finally:
        progress.close()
    found: dict[str, Any] = json.loads(result_path.read_bytes())
    ok = found["outcome"] == "ok"
    error = getattr(sys, "last_value", None)
    if not ok and error is not None and id(error) != earlier:  # running out of memory leaves none
        leave_to_debugger(error)
    result = TransformRun(
        code=found["code"],
        error=None if ok else found["message"],
        exit_code=found["exit_code"],
        where=_WHERE,
        tables=tuple(file.alias for file in tables),
        log=recorder.lines(),
        stages=found["stages"],
        seconds=seconds,
        peak_memory_bytes=found["peak_memory_bytes"],
        rows=found["rows"],
        output_bytes=found["output_bytes"],
        sha256=found["sha256"],
        manifest=json.loads(manifest_path.read_bytes()) if ok else {},
        displays=displays.shown,
        waterfall=_one_after_another(found["stages"]),
        profile=displays.profile,
        output=TableFile("output", output_path, manifest_path, output_format) if ok else None,
    )
    weakref.finalize(result, shutil.rmtree, place, True).atexit = False
    return result


def _one_after_another(stages: Mapping[str, float]) -> tuple[StageSpan, ...]:
    ends = list(itertools.accumulate(stages.values()))
    return tuple(StageSpan(name, end - seconds, end) for (name, seconds), end in zip(stages.items(), ends, strict=True))


def define_script(code: str, library: Mapping[str, str]) -> dict[str, Any]:
    """Run the script's top level here, without its prints and displays, and return the names it defines.

    A failure leaves no names, and is not shown: the run through the gateway shows it.
    """
    place = Path.cwd()
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            _inline_figures(),
            user_namespace(place / SCRIPT_FILE),
            captured_displays(Path(os.devnull)),
            in_directory(place),
        ):
            return script_names(load_script(write_modules(place, code, library)))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return {}


def script_names(module: ModuleType | None = None) -> dict[str, Any]:
    """Return the names that the script defined at its top level."""
    module = module or sys.modules.get("script")
    return {} if module is None else {name: value for name, value in vars(module).items() if not name.startswith("__")}


def _report_to(line: TransformLine) -> Report:
    return lambda payload: line.take({"event": "progress", **json.loads(payload)})


def _table(file: TableFile) -> dict[str, Any]:
    return {
        "alias": file.alias,
        "data_path": str(file.data_path),
        "manifest_path": str(file.manifest_path) if file.manifest_path else None,
        "data_format": file.data_format,
    }


def _limits() -> dict[str, int]:
    """Return the limits of this kernel by the names of a request, without those that are infinite."""
    asked = {
        "memory_bytes": resource.RLIMIT_DATA,
        "file_size_bytes": resource.RLIMIT_FSIZE,
        "descriptors": resource.RLIMIT_NOFILE,
        "processes": resource.RLIMIT_NPROC,
    }
    limits = {name: resource.getrlimit(number)[0] for name, number in asked.items()}
    return {name: limit for name, limit in limits.items() if limit != resource.RLIM_INFINITY}


class _Tee(io.TextIOBase):
    """A stream that forwards everything and keeps a copy."""

    encoding = "utf-8"

    def __init__(
        self, stream: TextIO, name: StreamName, kept: list[tuple[StreamName, str]], *, shows_displays: bool
    ) -> None:
        self._stream, self._name, self._kept, self._shows_displays = stream, name, kept, shows_displays

    def write(self, text: str, /) -> int:
        self._kept.append((self._name, text))
        return self._stream.write(text)

    def write_display(self, text: str) -> None:
        """Take the text of an image or a table, and do not pass it on if the cell shows that."""
        if self._shows_displays:
            self._kept.append((self._name, text))
        else:
            self.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def reconfigure(self, **_: Any) -> None:
        """Do nothing, as in a job."""

    def fileno(self) -> int:
        return 2 if self._name == "stderr" else 1

    def writable(self) -> bool:
        return True


class _Recorder:
    """The printed text, in order."""

    def __init__(self) -> None:
        self.kept: list[tuple[StreamName, str]] = []

    def lines(self) -> tuple[LogLine, ...]:
        """Return the text as lines; the end completes each stream's last line."""
        partial: dict[StreamName, str] = {}
        found = []
        for name, text in self.kept:
            *whole, partial[name] = (partial.get(name, "") + text).split("\n")
            found += [LogLine(name, line) for line in whole]
        return (*found, *(LogLine(name, rest) for name, rest in partial.items() if rest))


@contextlib.contextmanager
def _inline_figures() -> Iterator[None]:
    """Let Matplotlib's inline backend find the shell of the notebook, which is hidden if the code inside imports it."""
    was_loaded = _INLINE_BACKEND in sys.modules
    try:
        yield
    finally:
        if _INLINE_BACKEND in sys.modules and not was_loaded:
            importlib.reload(sys.modules[_INLINE_BACKEND])


@contextlib.contextmanager
def _recorded(*, shows_displays: bool) -> Iterator[_Recorder]:
    recorder = _Recorder()
    saved = sys.stdout, sys.stderr
    sys.stdout = cast("TextIO", _Tee(saved[0], "stdout", recorder.kept, shows_displays=shows_displays))
    sys.stderr = cast("TextIO", _Tee(saved[1], "stderr", recorder.kept, shows_displays=False))
    try:
        yield recorder
    finally:
        sys.stdout, sys.stderr = saved
