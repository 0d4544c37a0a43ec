"""The outcome of a run in a notebook."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from transform_shim.core.formats import DataFormat
from transform_shim.core.table_file import TableFile
from transform_shim.displays.values import Display, Profile, StageSpan, displays_from
from transform_shim.notebook.companion import Companion

__all__ = ["LogLine", "TransformRun"]

_HEAD_ROWS = 10
StreamName = Literal["stdout", "stderr"]


class LogLine(NamedTuple):
    """One line of a job's log."""

    stream: StreamName
    message: str


@dataclass(eq=False)
class TransformRun:
    """A finished run; a notebook shows all of it.

    Attributes
    ----------
    code : str
        ``ok``, or the failure code that production answers.
    error : str or None
        The message that production answers.
    exit_code : int
    manifest : dict
        Of the output, as Metabase gets it; empty on failure.
    log : tuple of LogLine
        The log as Metabase shows it; on failure the reason is its last line.
    stages : dict
        Seconds by stage.
    waterfall : tuple of StageSpan
        When each stage began and ended.
    profile : Profile or None
        Figures about the columns of the output; of ``%%transform`` only.
    seconds : float
        From the slot to the end.
    peak_memory_bytes : int or None
    rows, output_bytes : int
    sha256 : str or None
        Of the output.
    tables : tuple of str
        Names of the tables that the job was given.
    where : str
        Which gateway ran it, or this kernel.
    held : dict or None
        ``attach`` and ``expires_at``, where the failed job's kernel was kept.
    not_held : str or None
        Why it was not, though that was asked for.
    comparison : str or None
        The differences from the run in the notebook; of `submit` only.
    variable : str or None
        The notebook's name of the data as a frame.
    displays : tuple of Display
        Images and tables that the transform displayed.
    """

    code: str
    error: str | None
    exit_code: int
    where: str
    tables: tuple[str, ...] = ()
    log: tuple[LogLine, ...] = ()
    stages: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int | None = None
    rows: int = 0
    output_bytes: int = 0
    sha256: str | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    held: Mapping[str, Any] | None = None
    not_held: str | None = None
    comparison: str | None = None
    variable: str | None = None
    output: TableFile | None = None
    displays: tuple[Display, ...] = ()
    waterfall: tuple[StageSpan, ...] = ()
    profile: Profile | None = None

    @property
    def ok(self) -> bool:
        return self.code == "ok"

    @functools.cached_property
    def frame(self) -> Any:
        """Return the data as Metabase gets it, read back once.

        Returns
        -------
        pandas.DataFrame or None
            None on failure.
        """
        if self.output is None:
            return None
        from transform_shim.reading.frame_kinds import load_table
        from transform_shim.reading.table_source import TableSource

        return load_table(TableSource(self.output), "pandas").value

    def head(self) -> Any:
        """Return the first rows of the data without reading the rest.

        Returns
        -------
        pandas.DataFrame or None
            Ten rows at most; None on failure.
        """
        if self.output is None:
            return None
        from transform_shim.reading.frame_kinds import load_table
        from transform_shim.reading.table_source import TableSource

        reader = load_table(TableSource(self.output), "arrow_reader").value
        first = next(iter(reader), None)
        return (reader.schema.empty_table() if first is None else first.slice(0, _HEAD_ROWS)).to_pandas()

    @functools.cached_property
    def schema(self) -> Any:
        """Return the columns that Metabase would create.

        Returns
        -------
        pandas.DataFrame
            One row for each column of the output, with ``column`` (its name) and ``base_type``.
        """
        import pandas as pd

        return pd.DataFrame(self.fields, columns=["column", "base_type"])

    @property
    def fields(self) -> list[tuple[str, str]]:
        """Return the columns that Metabase would create.

        Returns
        -------
        list of (str, str)
            Name and base type of each column.
        """
        return [(entry["name"], entry.get("base_type") or "?") for entry in self.manifest.get("fields", [])]


def run_from(answer: Mapping[str, Any], tables: tuple[str, ...], companion: Companion) -> TransformRun:
    """Return the run that the companion's answer describes; its files are removed with it."""
    output = None
    manifest: Mapping[str, Any] = {}
    if answer["output_path"] is not None:
        import json

        manifest_path = Path(answer["manifest_path"])
        manifest = json.loads(manifest_path.read_bytes())
        data_format = cast("DataFormat", answer["data_format"])
        output = TableFile("output", Path(answer["output_path"]), manifest_path, data_format)
    displays = displays_from(answer["displays"])
    run = TransformRun(
        code=answer["code"],
        error=answer["error"],
        exit_code=answer["exit_code"],
        where=answer["where"],
        tables=tables,
        log=tuple(LogLine(stream, message) for stream, message in answer["log"]),
        stages=answer["stages"],
        seconds=answer["seconds"],
        peak_memory_bytes=answer["peak_memory_bytes"],
        rows=answer.get("rows", 0),
        output_bytes=answer.get("output_bytes", 0),
        sha256=answer.get("sha256"),
        manifest=manifest,
        held=answer.get("held"),
        not_held=answer.get("not_held"),
        output=output,
        displays=displays.shown,
        waterfall=tuple(StageSpan(**span) for span in answer["waterfall"]),
        profile=displays.profile,
    )
    if output is not None:
        weakref.finalize(run, companion.unwanted, answer["number"]).atexit = False
    return run
