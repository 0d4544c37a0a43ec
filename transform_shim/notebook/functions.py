"""The magics as plain functions with the same behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, cast

from transform_shim.core.formats import DataFormat
from transform_shim.notebook.display import show_displays
from transform_shim.notebook.errors import NotebookError
from transform_shim.notebook.log_printer import LogPrinter
from transform_shim.notebook.options import RunOptions, check_format
from transform_shim.notebook.run_outcome import TransformRun
from transform_shim.notebook.session import session
from transform_shim.notebook.tables import Table

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
        Types of the columns: a file or a URL for a file or a URL, the manifest itself for a frame.
    format : str, optional
        Needed where neither the name nor the content of a file shows it.

    Returns
    -------
    Table
        Its rows, columns and types. The frame itself is ``tables[name]``.

    Raises
    ------
    NotebookError
        The table cannot be loaded; the text says why.
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
    """Forget a table and remove its files.

    Parameters
    ----------
    name : str
        Of a loaded table.

    Raises
    ------
    NotebookError
        There is no table of this name; the text names the loaded ones.
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
) -> TransformRun:
    """Run a script that defines transform() on the loaded tables, exactly as in production: a gateway runs it.

    Parameters
    ----------
    code : str
        The text of the script.
    timeout : float, optional
        Seconds; the gateway's default otherwise.
    here : bool, optional
        Run in this kernel instead: no fresh process and no limits but the notebook's, and after a failure ``%debug``
        opens the frame that failed. Takes neither `timeout` nor `hold_minutes`.
    hold_minutes : float, optional
        How long to keep the kernel of a failed job; `TransformRun.held` then says how to attach to it.
    output_format : str, optional
        Data format of the result, JSON lines otherwise.
    show : bool, optional
        Print the log as it arrives, then show what the transform displayed.

    Returns
    -------
    TransformRun
        Of a failed job too: ``code`` and ``error`` say why.

    Raises
    ------
    NotebookError
        Nothing was run.
    KeyboardInterrupt
        It was cancelled before it ran.
    """
    options = RunOptions(timeout, cast("DataFormat | None", output_format), hold_minutes)
    with LogPrinter() as log:
        result = session.run(code, options, here=here, on_event=log.take if show else None)
        log.finish(result.displays)
    if show:
        show_displays(result)
    return result


def submit(
    code: str | None = None,
    *,
    timeout: float | None = None,
    hold_minutes: float | None = None,
    output_format: str | None = None,
    show: bool = False,
) -> TransformRun:
    """Send a script, or the one that was run last, with the loaded tables to the running gateway.

    That is the gateway of TRANSFORM_GATEWAY_URL in Jupyter's environment (its token in AUTH_TOKEN), else the one on
    this machine. `TransformRun.comparison` says what differs from the run in the notebook; the timeout and format of
    that run apply here too unless others are given.

    Parameters
    ----------
    code : str, optional
        The text of the script. By default that of the last run.
    timeout : float, optional
        Seconds. By default that of the last run, else that of the gateway.
    hold_minutes : float, optional
        How long to keep the kernel of a failed job; `TransformRun.held` then says how to attach to it.
    output_format : str, optional
        Format of the result. By default that of the last run, else JSON lines.
    show : bool, optional
        Print the log as it arrives.

    Returns
    -------
    TransformRun
        Of a failed job too: ``code`` and ``error`` say why.

    Raises
    ------
    NotebookError
        There is nothing to send, or no gateway accepted it.
    """
    options = RunOptions(timeout, cast("DataFormat | None", output_format), hold_minutes)
    with LogPrinter() as log:
        result = session.submit(code, options, log.take if show else None)
        log.finish(result.displays)
    if show:
        show_displays(result)
    return result


def library(name: str, source: str) -> Any:
    """Make a module of `source` that transforms and the notebook can import.

    Parameters
    ----------
    name : str
        Name of the module: an identifier that no imported module has.
    source : str
        Its Python code.

    Returns
    -------
    module
        As ``import name`` gives it. If its import fails, the module of this name stays as it was before.

    Raises
    ------
    NotebookError
        The name cannot be that of a module, or the source cannot be imported.
    """
    return session.add_library(name, source)
