"""What a run in a notebook has come to."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from transform_shim.notebook.companion import Companion
from transform_shim.request import DataFormat, TableFile

__all__ = ["LogLine", "Result"]

_HEAD_ROWS = 10
StreamName = Literal["stdout", "stderr"]


class LogLine(NamedTuple):
    """One line of a job's log."""

    stream: StreamName
    message: str


@dataclass(eq=False)
class Result:
    """A finished run; shown in a notebook it tells everything at one glance.

    Attributes
    ----------
    code : str
        ``ok``, or why the job failed: the stable word that production answers.
    error : str or None
        The sentence that production answers.
    exit_code : int
    manifest : dict
        Of the output, as Metabase gets it; empty on failure.
    log : tuple of LogLine
        What Metabase shows; on failure the reason is its last line.
    stages : dict
        Seconds by stage.
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
        What differs from the run in the notebook; of `submit` only.
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
    output: TableFile | None = None

    @property
    def ok(self) -> bool:
        """Whether the run succeeded."""
        return self.code == "ok"

    @functools.cached_property
    def frame(self) -> Any:
        """The data as Metabase gets it, read back as a pandas frame; None on failure."""
        if self.output is None:
            return None
        from transform_shim.reading.source import TableSource
        from transform_shim.reading.tables import load_table

        return load_table(TableSource(self.output), "pandas").value

    def head(self) -> Any:
        """The first rows of the data as a pandas frame, without reading the rest; None on failure."""
        if self.output is None:
            return None
        from transform_shim.reading.source import TableSource
        from transform_shim.reading.tables import load_table

        reader = load_table(TableSource(self.output), "arrow_reader").value
        first = next(iter(reader), None)
        return (reader.schema.empty_table() if first is None else first.slice(0, _HEAD_ROWS)).to_pandas()

    @functools.cached_property
    def schema(self) -> Any:
        """The columns that Metabase would create: a frame of ``column`` and ``base_type``."""
        import pandas as pd

        return pd.DataFrame(self.fields, columns=["column", "base_type"])

    @property
    def fields(self) -> list[tuple[str, str]]:
        """Names and base types of the columns that Metabase would create."""
        return [(entry["name"], entry.get("base_type") or "?") for entry in self.manifest.get("fields", [])]

    def __repr__(self) -> str:
        from transform_shim.notebook.display import result_text

        return result_text(self)

    def _repr_html_(self) -> str:
        from transform_shim.notebook.display import result_html

        return result_html(self)


def result_of(answer: Mapping[str, Any], tables: tuple[str, ...], companion: Companion) -> Result:
    """Return the result that the companion's answer stands for; its files go when it does."""
    output = None
    manifest: Mapping[str, Any] = {}
    if answer["output_path"] is not None:
        import json

        manifest_path = Path(answer["manifest_path"])
        manifest = json.loads(manifest_path.read_bytes())
        data_format = cast("DataFormat", answer["data_format"])
        output = TableFile("output", Path(answer["output_path"]), manifest_path, data_format)
    result = Result(
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
    )
    if output is not None:
        weakref.finalize(result, companion.unwanted, answer["number"]).atexit = False
    return result
