"""The result of a job that succeeded, as bytes, a file or a data frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.core.displays import DisplayedProfile
from gateway.core.events import LogLine
from gateway.core.formats import DataFormat
from gateway.core.job import RequestId

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class TransformResult:
    """A job that succeeded.

    Attributes
    ----------
    output_path : Path or None
        The file with the result, if one was given.
    output : bytes or None
        The result itself, if there is no file or the file is of another kind than `data_format`.
    manifest : dict
        Names and types of the columns.
    log : tuple of LogLine
        The job's output.
    stages_seconds : dict
        Stage to its duration in seconds.
    display_count : int
        Number of images and tables that the job displayed, and its profile; `TransformClient.displays` returns them.
    profile : DisplayedProfile or None
        Figures about the columns of the result, if they were requested and could be computed.
    """

    request_id: RequestId
    execution_id: str
    data_format: DataFormat
    rows: int
    fields: int
    output_bytes: int
    output_path: Path | None
    output: bytes | None
    manifest: dict[str, Any]
    log: tuple[LogLine, ...]
    execution_seconds: float
    stages_seconds: dict[str, float]
    peak_memory_bytes: int | None
    display_count: int = 0
    profile: DisplayedProfile | None = None

    def frame(self) -> pd.DataFrame:
        """Return the result as a pandas data frame, with the dtypes that a transform gets for such a table.

        Returns
        -------
        pandas.DataFrame
            Integers with nulls are ``Int64`` and the like, booleans with nulls ``boolean``, dates ``datetime64``.

        Raises
        ------
        UnreadableResult
            The result has two columns of the same name.
        OSError
            The file of the result is gone.
        """
        from gateway.results.frames import to_pandas  # pandas takes half a second, which other callers do not pay

        return to_pandas(self.arrow())

    def arrow(self) -> pa.Table:
        """Return the result as an Arrow table, which Polars and DuckDB convert without a copy.

        Returns
        -------
        pyarrow.Table
            From CSV and JSON lines, texts, dates and times have the type of the manifest; numbers are inferred.

        Raises
        ------
        UnreadableResult
            The result has two columns of the same name.
        OSError
            The file of the result is gone.
        """
        from gateway.results.result_file import read_result

        source = self.output_path if self.output is None else self.output
        base_types = {field["name"]: field["base_type"] for field in self.manifest.get("fields", [])}
        return read_result(source or b"", self.data_format, base_types)
