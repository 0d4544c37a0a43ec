"""The output of a job that the client runs: in memory, or a file in any of the formats that a table file can have."""

from __future__ import annotations

import dataclasses
import errno
import tempfile
import urllib.parse
from pathlib import Path
from typing import Any, Self

from gateway.client.result import TransformResult
from gateway.client.transport import GatewayHttp
from gateway.core.events import LogLine
from gateway.core.formats import DataFormat
from gateway.core.job import RequestId
from gateway.table_files.kinds import FileKind, kind_of
from gateway.table_files.writing import check_writer, write_as


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """The place of an output.

    Attributes
    ----------
    data_format : str
        In which the job writes it.
    path : Path or None
        None for the memory.
    kind : FileKind or None
        Of the file; None if it is as the job writes it.
    """

    data_format: DataFormat
    path: Path | None = None
    kind: FileKind | None = None

    @classmethod
    def of(cls, output: str | Path | None, output_format: DataFormat | None) -> Self:
        """Return the place that a caller of `TransformClient.run` asks for.

        Raises
        ------
        OSError, ValueError
            The file could not be written, so that the result of the job would be lost.
        """
        if output is None:
            return cls(output_format or "arrow")
        path = Path(output)
        if not path.absolute().parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no such directory", str(path.parent))
        if output_format:
            return cls(output_format, path)
        kind = kind_of(path)
        check_writer(kind)
        return cls(kind.data_format, path, None if kind.is_plain else kind)

    def fetch(
        self, http: GatewayHttp, request_id: RequestId, answer: dict[str, Any], log: tuple[LogLine, ...]
    ) -> TransformResult:
        """Fetch the kept result of a job that succeeded with this answer."""
        direct = self.path if self.kind is None else None
        content = http.download(result_path(request_id, "output"), direct, answer.get("sha256"))
        manifest = http.get_json(result_path(request_id, "manifest"))
        if self.path is not None and self.kind is not None:
            _write(content or b"", self.kind, self.path)
        return TransformResult(
            request_id=request_id,
            execution_id=str(answer.get("execution_id", "")),
            data_format=self.data_format,
            rows=int(answer.get("rows") or 0),
            fields=int(answer.get("fields") or 0),
            output_bytes=int(answer.get("bytes_out") or 0),
            output_path=self.path,
            output=content,
            manifest=manifest,
            log=log,
            execution_seconds=float(answer.get("execution_time") or 0.0),
            stages_seconds=dict(answer.get("stages") or {}),
            peak_memory_bytes=answer.get("peak_memory_bytes"),
            display_count=int(answer.get("displays") or 0),
        )


def result_path(request_id: RequestId, what: str) -> str:
    """Return the path of a part of a kept result at the gateway."""
    return f"/v1/results/{urllib.parse.quote(str(request_id), safe='')}/{what}"


def _write(content: bytes, kind: FileKind, path: Path) -> None:
    """Write a result to a file of a kind that no job writes itself."""
    with tempfile.TemporaryDirectory(prefix="transform-client-") as directory:
        plain = Path(directory) / "output"
        plain.write_bytes(content)
        write_as(plain, kind, path)
