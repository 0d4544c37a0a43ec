"""The magics as plain functions, for people who like those better; the behaviour is the same."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from os import PathLike
from typing import Any, cast

from transform_shim.notebook.errors import NotebookError
from transform_shim.notebook.results import LogLine, Result
from transform_shim.notebook.session import RunOptions, check_format, printer, session
from transform_shim.notebook.tables import Table
from transform_shim.request import DataFormat

__all__ = ["drop_table", "library", "run_transform", "submit", "table", "tables"]

tables = session.tables


def table(
    name: str,
    source: Any,
    *,
    manifest: str | PathLike[str] | Mapping[str, Any] | None = None,
    format: str | None = None,
) -> Table:
    """Load a table under the name that a parameter of transform() has.

    Parameters
    ----------
    name : str
        A Python identifier.
    source : str or data frame
        A file (relative to where Jupyter runs the notebook), a URL (http, https), ``metabase:ID``, ``metabase:NAME``,
        or a frame: pandas, Polars, Arrow, DuckDB.
    manifest : str or mapping, optional
        Types of the columns: a file or a URL beside `source`, for a frame the manifest itself.
    format : {'jsonl', 'csv', 'parquet', 'arrow'}, optional
        Where neither the name nor the content of a file tells.

    Raises
    ------
    NotebookError
        The table cannot be had; the text says why.
    """
    check_format(format)
    if hasattr(source, "__fspath__"):
        source = str(source)
    if isinstance(manifest, PathLike):
        manifest = str(manifest)
    if not isinstance(source, str):
        if isinstance(manifest, str):
            raise NotebookError("the manifest of a frame must be the mapping itself")
        return tables.take(name, source, manifest)
    if isinstance(manifest, Mapping):
        raise NotebookError("the manifest of a file or URL must be a file or URL too")
    from transform_shim.notebook.progressline import ProgressLine

    progress = ProgressLine(name)
    try:
        return tables.load(name, source, manifest, cast("DataFormat | None", format), progress.take)
    finally:
        progress.close()


def drop_table(name: str) -> None:
    """Forget a table.

    Raises
    ------
    NotebookError
        There is none of this name.
    """
    tables.drop(name)


def run_transform(
    code: str,
    *,
    timeout: float | None = None,
    here: bool = False,
    hold_minutes: float | None = None,
    output_format: str | None = None,
    show: bool = False,
) -> Result:
    """Run a script that defines transform() on the loaded tables, exactly as the gateway does: by a gateway.

    Parameters
    ----------
    code : str
        The text of the script.
    timeout : float, optional
        Seconds; the gateway's default otherwise.
    here : bool, optional
        Run in this kernel instead: no fresh process and no limits but the notebook's, and after a failure ``%debug``
        stands in the script's frame. Takes neither `timeout` nor `hold_minutes`.
    hold_minutes : float, optional
        Keep the kernel of a failed job for so long; `Result.held` then says how to attach to it.
    output_format : {'jsonl', 'csv', 'parquet', 'arrow'}, optional
        What the result is written as, JSON lines otherwise.
    show : bool, optional
        Print the log while it comes.

    Returns
    -------
    Result
        Of a failed job too: ``code`` and ``error`` say why.

    Raises
    ------
    NotebookError
        Nothing was run.
    KeyboardInterrupt
        It was cancelled before it ran.
    """
    options = RunOptions(timeout, cast("DataFormat | None", output_format), hold_minutes)
    return session.run(code, options, here=here, on_event=printer(_print) if show else None)


def submit(
    code: str | None = None,
    *,
    timeout: float | None = None,
    hold_minutes: float | None = None,
    output_format: str | None = None,
    show: bool = False,
) -> Result:
    """Send a script, or the one that was run last, with the loaded tables to the running gateway.

    That is the one that TRANSFORM_GATEWAY_URL names where Jupyter is started (its token in AUTH_TOKEN), else the one on
    this machine. `Result.comparison` says what differs from the run in the notebook, whose time-out and format hold
    here too unless others are given. For the parameters see `run_transform`.

    Raises
    ------
    NotebookError
        There is nothing to send, or no gateway took it.
    """
    options = RunOptions(timeout, cast("DataFormat | None", output_format), hold_minutes)
    return session.submit(code, options, printer(_print) if show else None)


def library(name: str, source: str) -> Any:
    """Make a module of `source` that transforms and the notebook can import, and return it.

    Raises
    ------
    NotebookError
        The name cannot be a module's, or the source is not Python.
    """
    return session.add_library(name, source)


def _print(line: LogLine) -> None:
    print(line.message, file=sys.stderr if line.stream == "stderr" else sys.stdout)
