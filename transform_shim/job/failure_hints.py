"""The last line of a failure's text: the reason, if the exception does not give it, and the remedy."""

from __future__ import annotations

import errno
import inspect
import os
import socket
import sys
import traceback
from bdb import BdbQuit
from collections.abc import Collection, Iterator
from decimal import Decimal
from subprocess import CalledProcessError
from typing import Any

import numpy as np
import pandas as pd

from transform_shim.core.errors import shorten
from transform_shim.writing.frame_source import is_frame

__all__ = ["hint", "return_hint"]

#: Columns or labels that a message lists.
_MOST_LABELS = 20
#: Elements of a returned list that are looked at.
_SAMPLE = 100
_NO_NETWORK_ERRNOS = frozenset(
    {errno.EAFNOSUPPORT, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL}
)
#: A documentation address (RFC 5737), which no host has.
_SOME_ADDRESS = ("192.0.2.1", 9)
#: Places that a job has in addition to its own directory.
_JOB_PLACES = ("/tmp/", "/dev/")  # noqa: S108
_HOLDERS = (pd.DataFrame, pd.Series)
_FRAMES_EXTRA = frozenset({"polars", "duckdb"})
_ADD_PACKAGES = "the operator can add packages (transform-gateway packages add)"


def hint(error: BaseException, tables: Collection[str] = ()) -> str:
    """Return a sentence without full stop that explains what the user's code raised, or an empty text.

    `tables` are the names of the job's tables.
    """
    for current in _chain(error):
        if isinstance(current, NameError) and current.name in tables:
            return f"'{current.name}' is a table: transform() gets it as a parameter of this name"
        if isinstance(current, ModuleNotFoundError) and current.name:
            return _missing_module(current.name.partition(".")[0])
        # of query(); "local variable" is one of the script, and no column
        is_undefined = isinstance(current, pd.errors.UndefinedVariableError) and str(current).startswith("name ")
        if (isinstance(current, KeyError) or is_undefined) and (labels := _labels(current)):
            return labels
        if _is_network(current) and not _has_network():
            return "jobs have no network; the operator can allow it (ALLOW_NETWORK)"
        if isinstance(current, CalledProcessError) and "pip" in _arguments(current):
            return f"jobs cannot install packages; {_ADD_PACKAGES}"
        if isinstance(current, SyntaxError) and (current.text or "").startswith(("%", "!")):
            return "lines with % and ! are commands of notebooks: leave them out of a script"
        if said := _of_an_engine(current):
            return said
        if isinstance(current, BdbQuit):
            return "a job has no terminal: use hold_minutes (--hold) to debug the kernel of a failed job"
    return _outside(error)


def return_hint(value: object) -> str:
    """Return what to do about a returned value that is no table, or an empty text."""
    if value is None:
        return "transform() returned None: is its 'return' missing?"
    if isinstance(value, pd.Series):
        return "a Series is one column: return series.to_frame(), or series.reset_index() to keep its index"
    if isinstance(value, list | tuple) and value:
        return _rows_hint(value)
    if isinstance(value, dict):
        return "for a dict of columns, return pd.DataFrame(columns)"
    if isinstance(value, np.ndarray):
        return "for an array, return pd.DataFrame(array)"
    if isinstance(value, bool | int | float | Decimal | np.generic):
        return "for a single value, return pd.DataFrame({'value': [value]})"
    if inspect.iscoroutine(value):
        return "for a coroutine, return asyncio.run(coroutine)"
    if type(value).__name__.endswith("GroupBy"):
        return "groups are no table yet: aggregate them, for example with .sum()"
    if type(value).__name__ == "DuckDBPyConnection":
        return "a DuckDB connection is no table: return connection.sql(query)"
    return ""


def _rows_hint(values: list[object] | tuple[object, ...]) -> str:
    """Return what to do about a list or tuple that is not empty."""
    some = values[:_SAMPLE]
    frames = [value for value in some if is_frame(value)]
    if len(frames) == 1:
        if len(values) > 1:
            return "return the data frame alone"
        comma = "; is there a comma after it?" if isinstance(values, tuple) else ""
        return f"return the data frame itself, not a {type(values).__name__} of it{comma}"
    if len(frames) == len(some):
        return "return one data frame: pd.concat(frames) puts several below each other"
    if isinstance(values, list) and all(isinstance(row, dict | list | tuple) for row in some):
        return "for a list of rows, return pd.DataFrame(rows)"
    return ""


def _of_an_engine(error: BaseException) -> str:
    if type(error).__name__ == "ConnectionException" and "closed" in str(error):
        return "a DuckDB relation is read when it is written: leave its connection open, or return relation.df()"
    if type(error).__module__.startswith("polars") and "month_day_nano_interval" in str(error):
        return "Polars has no intervals of months: return the DuckDB relation itself, or cast the column to VARCHAR"
    return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _arguments(error: CalledProcessError) -> list[str]:
    return error.cmd.split() if isinstance(error.cmd, str) else [str(argument) for argument in error.cmd]


def _missing_module(name: str) -> str:
    if name in sys.stdlib_module_names:
        return ""
    way = "the operator can install the extra 'frames'" if name in _FRAMES_EXTRA else _ADD_PACKAGES
    return f"'{name}' is neither installed here nor a module of the job's library: {way}"


def _is_network(error: BaseException) -> bool:
    if isinstance(error, socket.gaierror):
        return True
    if not isinstance(error, OSError):
        return False
    if error.errno in _NO_NETWORK_ERRNOS:
        return True
    # requests looks for its certificates before it connects
    return type(error).__module__.startswith("requests") or "CA certificate" in str(error)


def _has_network() -> bool:
    """Return whether this process has a route to other hosts; nothing is sent (connect(2) on a datagram socket)."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(_SOME_ADDRESS)
    except OSError as error:
        # EPROTONOSUPPORT, EACCES, EPERM: no datagrams, which a job with a network does not have either
        return error.errno not in _NO_NETWORK_ERRNOS
    return True


def _outside(error: BaseException) -> str:
    """Explain a file that is not there, unless a program or a place of the job's own is meant."""
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return "a job can write only to its own directory"
    if not isinstance(error, FileNotFoundError | PermissionError) or not isinstance(error.filename, str):
        return ""
    if any(frame.f_code.co_name == "_execute_child" for frame, _ in traceback.walk_tb(error.__traceback__)):
        return f"the program {shorten(error.filename)} is not available to jobs"
    path = os.path.normpath(error.filename)  # the job's own directory may itself be below /tmp
    if path.startswith(_JOB_PLACES):
        return ""
    return "a job sees only its own directory; files come in as tables (%table in a notebook)"


def _labels(error: BaseException) -> str:
    """List the columns of the frame that did not have the key, or the labels of the series; empty for other keys."""
    holder: Any = None
    index: Any = None
    in_pandas = False
    for each, _ in traceback.walk_tb(error.__traceback__):
        in_pandas = "pandas" in each.f_code.co_filename
        if not in_pandas:
            holder = index = None
            continue
        owner, found = each.f_locals.get("self"), each.f_locals.get("obj")
        if isinstance(owner, pd.Index):
            index = owner
        elif isinstance(owner, _HOLDERS):
            holder, index = owner, None
        elif isinstance(found, _HOLDERS) or isinstance(found := getattr(owner, "obj", None), _HOLDERS):  # groups, loc
            holder, index = found, None
    if not in_pandas or holder is None:
        return ""
    is_frame = isinstance(holder, pd.DataFrame)
    labels = holder.columns if is_frame else holder.index
    if index is not None and index is not labels:
        return ""
    what = "columns" if is_frame else "labels"
    shown = [shorten(name) for name in labels[:_MOST_LABELS]]
    more = len(labels) - len(shown)
    listed = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
    return f"the {what} are: {listed}" if shown else f"there are no {what}"
