"""A transform in the notebook's own kernel: the shim of a job, without the fresh process around it."""

from __future__ import annotations

import contextlib
import io
import json
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

from transform_shim import job
from transform_shim.loading import load_script, write_modules
from transform_shim.notebook.results import LogLine, Result, StreamName
from transform_shim.notebook.session import RunOptions
from transform_shim.plain import in_directory, plain_surroundings
from transform_shim.request import TableFile

__all__ = ["define_script", "run_here", "script_names"]

_WHERE = "this kernel"


def run_here(code: str, library: Mapping[str, str], tables: Sequence[TableFile], options: RunOptions) -> Result:
    """Run a script as a job would, in this process.

    The frame of a failure stays, as ``sys.last_traceback`` and its like: ``%debug`` shows it. There is no time-out
    here; Ctrl-C interrupts.
    """
    place = Path(tempfile.mkdtemp(prefix="here-"))
    output_format = options.output_format or "jsonl"
    output_path, manifest_path, result_path = place / "output", place / "manifest.json", place / "result.json"
    request = {
        "version": 1,
        "code": code,
        "library": dict(library),
        "tables": [_table(file) for file in tables],
        "output_format": output_format,
        "output_path": str(output_path),
        "manifest_path": str(manifest_path),
        "result_path": str(result_path),
        "work_dir": str(Path.cwd()),
        "limits": _limits(),
    }
    began = time.monotonic()
    with _recorded() as recorder:
        job.run(json.dumps(request))
    seconds = time.monotonic() - began
    if hasattr(sys, "last_value"):
        vars(sys)["last_exc"] = sys.last_value  # what debuggers look at since Python 3.12
    found: dict[str, Any] = json.loads(result_path.read_bytes())
    ok = found["outcome"] == "ok"
    result = Result(
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
        output=TableFile("output", output_path, manifest_path, output_format) if ok else None,
    )
    weakref.finalize(result, shutil.rmtree, place, True).atexit = False
    return result


def define_script(code: str, library: Mapping[str, str]) -> dict[str, Any]:
    """Run the script's top level here, without its prints, and return the names it defines.

    Whatever goes wrong leaves no names: the run through the gateway has said, or will say, what there is to say.
    """
    place = Path.cwd()
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            plain_surroundings(),
            in_directory(place),
        ):
            return script_names(load_script(write_modules(place, code, library)))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return {}


def script_names(module: ModuleType | None = None) -> dict[str, Any]:
    """Return what the script defined at its top level."""
    module = module or sys.modules.get("script")
    return {} if module is None else {name: value for name, value in vars(module).items() if not name.startswith("__")}


def _table(file: TableFile) -> dict[str, Any]:
    return {
        "alias": file.alias,
        "data_path": str(file.data_path),
        "manifest_path": str(file.manifest_path) if file.manifest_path else None,
        "data_format": file.data_format,
    }


def _limits() -> dict[str, int]:
    """The limits of this kernel, by the names of a request; what has none is left out."""
    asked = {
        "memory_bytes": resource.RLIMIT_DATA,
        "file_size_bytes": resource.RLIMIT_FSIZE,
        "descriptors": resource.RLIMIT_NOFILE,
        "processes": resource.RLIMIT_NPROC,
    }
    limits = {name: resource.getrlimit(number)[0] for name, number in asked.items()}
    return {name: limit for name, limit in limits.items() if limit != resource.RLIM_INFINITY}


class _Tee(io.TextIOBase):
    """A stream that passes everything on and keeps it."""

    encoding = "utf-8"

    def __init__(self, stream: TextIO, name: StreamName, kept: list[tuple[StreamName, str]]) -> None:
        self._stream, self._name, self._kept = stream, name, kept

    def write(self, text: str, /) -> int:
        self._kept.append((self._name, text))
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return 2 if self._name == "stderr" else 1

    def writable(self) -> bool:
        return True


class _Recorder:
    """What was printed, in order."""

    def __init__(self) -> None:
        self.kept: list[tuple[StreamName, str]] = []

    def lines(self) -> tuple[LogLine, ...]:
        """The text as lines; each stream's unfinished line ends at the end."""
        partial: dict[StreamName, str] = {}
        found = []
        for name, text in self.kept:
            *whole, partial[name] = (partial.get(name, "") + text).split("\n")
            found += [LogLine(name, line) for line in whole]
        return (*found, *(LogLine(name, rest) for name, rest in partial.items() if rest))


@contextlib.contextmanager
def _recorded() -> Iterator[_Recorder]:
    recorder = _Recorder()
    saved = sys.stdout, sys.stderr
    sys.stdout = cast("TextIO", _Tee(saved[0], "stdout", recorder.kept))
    sys.stderr = cast("TextIO", _Tee(saved[1], "stderr", recorder.kept))
    try:
        yield recorder
    finally:
        sys.stdout, sys.stderr = saved
