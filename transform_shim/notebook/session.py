"""The state of one notebook: its tables, its library, and its last run."""

from __future__ import annotations

import dataclasses
import importlib
import keyword
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from transform_shim.job.script import SCRIPT_FILE
from transform_shim.notebook.companion import OnEvent, connect
from transform_shim.notebook.errors import NotebookError
from transform_shim.notebook.options import RunOptions
from transform_shim.notebook.run_outcome import TransformRun, run_from
from transform_shim.notebook.tables import Tables

__all__ = ["Session", "session"]

#: Names that a library module cannot have: it would hide the script or a module of the interpreter.
_RESERVED = frozenset({SCRIPT_FILE.removesuffix(".py"), "transform_shim", "__main__", *sys.builtin_module_names})


@dataclasses.dataclass
class Session:
    """The state of one notebook."""

    tables: Tables = dataclasses.field(default_factory=Tables)
    library: dict[str, str] = dataclasses.field(default_factory=dict)
    script: str | None = None
    #: The options and the outcome of the last run of `script` in the notebook.
    options: RunOptions = dataclasses.field(default_factory=RunOptions)
    local: TransformRun | None = None
    last: TransformRun | None = None

    def run(
        self, code: str, options: RunOptions, *, here: bool = False, on_event: OnEvent | None = None
    ) -> TransformRun:
        """Run a script on all tables, in a fresh kernel of a gateway or in this one, and remember it."""
        if not isinstance(code, str):
            raise NotebookError(f"the script must be text, not {type(code).__name__!r}")
        if here and (options.timeout is not None or options.hold_minutes is not None):
            raise NotebookError("in this kernel there is no timeout (Ctrl-C interrupts) and nothing to hold")
        self.script, self.options, self.local = code, options, None
        if here:
            from transform_shim.notebook.here import run_here

            tables = [self.tables.info(name).source.file for name in self.tables]
            result = run_here(code, self.library, tables, options, is_shown=on_event is not None)
        else:
            result = self._through_gateway(code, options, False, on_event)
        self.local = self.last = result
        return result

    def submit(self, code: str | None, options: RunOptions, on_event: OnEvent | None = None) -> TransformRun:
        """Run a script, or the last one, through the running gateway and compare it with the run in the notebook.

        A run that is compared has the timeout and the format that it had here, unless others are given.
        """
        script = self.script if code is None else code
        if script is None:
            raise NotebookError("there is nothing to submit: no %%transform has been run")
        is_same = script == self.script
        result = self._through_gateway(
            script, options.with_defaults(self.options) if is_same else options, True, on_event
        )
        if self.local is not None and is_same:
            result.comparison = compared(self.local, result)
        self.last = result
        return result

    def add_library(self, name: str, source: str) -> Any:
        """Make a module of the source, for transforms and for the notebook; returns it.

        Raises
        ------
        NotebookError
            The name cannot be a module's, or the source cannot be imported; an earlier module of this name stays.
        """
        name = name.removesuffix(".py")
        if not name.isidentifier() or keyword.iskeyword(name) or name in _RESERVED:
            raise NotebookError(f"{name!r} cannot be the name of a library module")
        path = Path.cwd() / f"{name}.py"
        other = sys.modules.get(name)
        if other is not None and getattr(other, "__file__", None) != str(path):
            raise NotebookError(f"{name!r} is the name of a module that is imported already; choose another")
        try:
            compile(source, path.name, "exec", dont_inherit=True)
        except SyntaxError as error:
            raise NotebookError(f"{path.name}, line {error.lineno}: {error.msg}") from None
        except ValueError as error:  # a null byte, or half a surrogate pair
            raise NotebookError(f"{path.name}: {error}") from None
        try:
            module = _imported(path, source)
        except BaseException as error:
            sys.modules.pop(name, None)
            if name in self.library:
                path.write_text(self.library[name], encoding="utf-8")
            else:
                path.unlink(missing_ok=True)
            if not isinstance(error, Exception):
                raise
            raise NotebookError(f"{_place(path, error)}: {type(error).__name__}: {error}") from error
        self.library[name] = source
        return module

    def _through_gateway(self, code: str, options: RunOptions, running: bool, on_event: OnEvent | None) -> TransformRun:
        companion = connect()
        names = tuple(self.tables)
        answer = companion.ask(
            "run",
            on_event,
            running=running,
            code=code,
            library=self.library,
            tables={name: self.tables.info(name).number for name in names},
            timeout=options.timeout,
            output_format=options.output_format or "jsonl",
            hold_minutes=options.hold_minutes,
            profile=options.profile,
        )
        return run_from(answer, names, companion)


def _imported(path: Path, source: str) -> ModuleType:
    path.write_text(source, encoding="utf-8")
    sys.modules.pop(path.stem, None)
    importlib.invalidate_caches()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    return importlib.import_module(path.stem)


def _place(path: Path, error: Exception) -> str:
    """Return the file and its own line that the error came from."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(path)]
    return f"{path.name}, line {lines[-1]}" if lines else path.name


def compared(local: TransformRun, submitted: TransformRun) -> str:
    """Return in a sentence what differs between two runs of the same script."""
    if local.code != submitted.code:
        return f"differs from the notebook: {local.code} there, {submitted.code} here"
    times = f"{submitted.seconds:.3f} s here, {local.seconds:.3f} s there"
    if not local.ok:
        same = "the same message" if local.error == submitted.error else f"another message ({local.error!r} there)"
        return f"same outcome as in the notebook, {same}; {times}"
    differences = []
    if local.rows != submitted.rows:
        differences.append(f"{local.rows:,} rows there, {submitted.rows:,} here")
    if local.fields != submitted.fields:
        differences.append("other columns or types")
    if differences:
        return f"differs from the notebook: {'; '.join(differences)}; {times}"
    formats = [run.output.data_format for run in (local, submitted) if run.output is not None]
    if len(set(formats)) > 1:
        data = f"but {formats[0]} there and {formats[1]} here, so the data is not compared"
    else:
        data = "the same data" if local.sha256 == submitted.sha256 else "not byte for byte the same data"
    return f"same as in the notebook: rows, columns, types, {data}; {times}"


session = Session()
