"""What one notebook has: its tables, its library, and what it ran last."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transform_shim.loading import SCRIPT_FILE
from transform_shim.notebook.companion import OnEvent, connect
from transform_shim.notebook.errors import NotebookError
from transform_shim.notebook.results import LogLine, Result, result_of
from transform_shim.notebook.tables import Tables
from transform_shim.request import DataFormat

__all__ = ["RunOptions", "Session", "session"]

_FORMATS = ("jsonl", "csv", "parquet", "arrow")
#: Names that the script cannot be shadowed by, nor the interpreter.
_RESERVED = frozenset({SCRIPT_FILE.removesuffix(".py"), "transform_shim", "__main__", *sys.builtin_module_names})


@dataclasses.dataclass(frozen=True, slots=True)
class RunOptions:
    """How a transform is run.

    Raises
    ------
    NotebookError
        A value makes no sense.
    """

    timeout: float | None = None
    output_format: DataFormat = "jsonl"
    hold_minutes: float | None = None

    def __post_init__(self) -> None:
        if self.timeout is not None and not self.timeout > 0:
            raise NotebookError(f"the time-out must be seconds above 0, not {self.timeout!r}")
        if self.hold_minutes is not None and not self.hold_minutes >= 0:
            raise NotebookError(f"a kernel is held for minutes from 0 up, not for {self.hold_minutes!r}")
        if self.output_format not in _FORMATS:
            raise NotebookError(f"{self.output_format!r} is not a format; these are: {', '.join(_FORMATS)}")


@dataclasses.dataclass
class Session:
    """The state of one notebook."""

    tables: Tables = dataclasses.field(default_factory=Tables)
    library: dict[str, str] = dataclasses.field(default_factory=dict)
    script: str | None = None
    #: The last run of `script` that was not submitted.
    local: Result | None = None
    last: Result | None = None

    def run(self, code: str, options: RunOptions, *, here: bool = False, on_event: OnEvent | None = None) -> Result:
        """Run a script on all tables, in a fresh kernel of a gateway or in this one, and remember it."""
        self.script, self.local = code, None
        if here:
            from transform_shim.notebook.here import run_here

            result = run_here(code, self.library, [self.tables.info(name).source.file for name in self.tables], options)
        else:
            result = self._through_gateway(code, options, False, on_event)
        self.local = self.last = result
        return result

    def submit(self, code: str | None, options: RunOptions, on_event: OnEvent | None = None) -> Result:
        """Run a script, or the last one, through the running gateway and compare it with the run in the notebook."""
        script = self.script if code is None else code
        if script is None:
            raise NotebookError("there is nothing to submit: no %%transform has been run")
        result = self._through_gateway(script, options, True, on_event)
        if self.local is not None and script == self.script:
            result.comparison = compared(self.local, result)
        self.last = result
        return result

    def add_library(self, name: str, source: str) -> Any:
        """Make a module of the source, for transforms and for the notebook; returns it.

        Raises
        ------
        NotebookError
            The name cannot be a module's, or the source is not Python.
        """
        name = name.removesuffix(".py")
        if not name.isidentifier() or name in _RESERVED:
            raise NotebookError(f"{name!r} cannot be the name of a library module")
        path = Path.cwd() / f"{name}.py"
        other = sys.modules.get(name)
        if other is not None and getattr(other, "__file__", None) != str(path):
            raise NotebookError(f"{name!r} is the name of a module that is imported already; choose another")
        try:
            compile(source, path.name, "exec", dont_inherit=True)
        except SyntaxError as error:
            raise NotebookError(f"{path.name}, line {error.lineno}: {error.msg}") from None
        path.write_text(source, encoding="utf-8")
        self.library[name] = source
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        return importlib.import_module(name)

    def _through_gateway(self, code: str, options: RunOptions, running: bool, on_event: OnEvent | None) -> Result:
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
            output_format=options.output_format,
            hold_minutes=options.hold_minutes,
        )
        return result_of(answer, names, companion)


def compared(local: Result, submitted: Result) -> str:
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
    data = "the same data" if local.sha256 == submitted.sha256 else "not byte for byte the same data"
    return f"same as in the notebook: rows, columns, types, {data}; {times}"


def printer(out: Callable[[LogLine], None]) -> OnEvent:
    """Return what passes the log lines among the companion's events on."""

    def take(event: Mapping[str, Any]) -> None:
        if event["event"] == "log":
            out(LogLine(event["stream"], event["message"]))

    return take


session = Session()
