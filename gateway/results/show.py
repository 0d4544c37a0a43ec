"""Show a result on standard output: the first rows, a profile, the difference from an earlier one."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import feather

from gateway.core.displays import DisplayedProfile
from gateway.results.comparison import ComparisonError, compare
from gateway.results.result_file import read_result, type_name
from gateway.results.text import comparison_text, head_text, profile_text, waterfall_text
from gateway.table_files.kinds import kind_of
from gateway.table_files.readable import ReadableFiles
from gateway.table_files.writing import UnwritableResult, write_as
from gateway.telemetry.waterfall import StageSpan

__all__ = ["Found", "show"]

#: Rows that a terminal shows by default.
TERMINAL_ROWS = 20


@dataclass(frozen=True, slots=True)
class Found:
    """A result, and the gateway's facts about its job.

    Attributes
    ----------
    table : pyarrow.Table
    base_types : dict of str to str
        Base types of the columns, also for reading the file of ``against``.
    profile : DisplayedProfile or None
        Without it, ``profile`` shows the stages only.
    waterfall : sequence of StageSpan
    """

    table: pa.Table
    base_types: dict[str, str]
    profile: DisplayedProfile | None
    waterfall: Sequence[StageSpan]


def show(options: argparse.Namespace, found: Found, before: pa.Table | None, files: ReadableFiles) -> bool:
    """Write head, profile and comparison of a result to standard output.

    Parameters
    ----------
    options : argparse.Namespace
        ``head``, ``profile``, ``against``, ``key`` and ``tolerance``.
    found : Found
        The result.
    before : pyarrow.Table or None
        The result of the run before.
    files : ReadableFiles
        Makes the file of ``against`` readable.

    Returns
    -------
    bool
        False if the result differs from the file of ``against``.

    Raises
    ------
    UnreadableResult, UnreadableTable
        The file of ``against`` cannot be read.
    ComparisonError
        They cannot be compared by the given key.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    key = tuple(name for name in (options.key or "").split(",") if name)
    table = found.table
    is_same = True
    if options.head is not None or not (options.profile or options.against or before is not None):
        sys.stdout.write(head_text(table, options.head or TERMINAL_ROWS, width))
    if options.profile:
        if found.profile is not None:
            sys.stdout.write(profile_text(found.profile, table.num_rows, width))
        sys.stdout.write(f"\n{waterfall_text(found.waterfall)}")
    if options.against is not None:
        against = files.readable(options.against)
        earlier = read_result(against, kind_of(against).data_format, found.base_types)
        is_workbook = kind_of(options.against).shape == "workbook"
        later = _as_in_a_workbook(found, earlier) if is_workbook else table
        try:
            difference = compare(earlier, later, key, options.tolerance)
        except ComparisonError as error:
            if options.head is None:  # the job took time: its result is shown, though it is not compared
                sys.stdout.write(head_text(table, TERMINAL_ROWS, width))
            raise ComparisonError(f"not compared with {options.against}: {error}") from None
        sys.stdout.write(comparison_text(difference, str(options.against), options.tolerance))
        is_same = difference.is_same
    if before is not None:
        try:
            difference = compare(before, table, key, options.tolerance)
        except ComparisonError as error:  # the next run is compared with this one, which may have the key
            sys.stdout.write(f"not compared with the run before: {error}\n")
        else:
            sys.stdout.write(comparison_text(difference, "the run before", options.tolerance))
    sys.stdout.flush()
    return is_same


def _as_in_a_workbook(found: Found, earlier: pa.Table) -> pa.Table:
    """Return a result with what a workbook keeps of it: no decimals, dates without a time, or microseconds.

    A column has its own values if the workbook's are of another type than those of the earlier one, which may come from
    somebody else: decimals that are numbers there are compared as such.
    """
    table = found.table
    with tempfile.TemporaryDirectory(prefix="transform-workbook-") as directory:
        source, book, copies = (Path(directory) / name for name in ("result.arrow", "result.xlsx", "copies"))
        feather.write_feather(table, source, compression="uncompressed")
        copies.mkdir()
        try:
            write_as(source, kind_of(book), book)
        except UnwritableResult:  # then the earlier workbook is of another result
            return table
        kept = read_result(ReadableFiles(copies).readable(book), "arrow", found.base_types)
    for place, name in enumerate(table.column_names):
        if name in earlier.column_names and type_name(kept[name].type) == type_name(earlier[name].type):
            table = table.set_column(place, name, kept[name])
    return table
