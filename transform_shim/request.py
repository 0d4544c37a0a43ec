"""The job as the gateway describes it: one JSON object, parsed once into values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

__all__ = ["DataFormat", "JobRequest", "TableFile"]

DataFormat = Literal["jsonl", "csv", "parquet", "arrow"]
Compression = Literal["gzip", "zstd"]
_FORMATS = ("jsonl", "csv", "parquet", "arrow")
_COMPRESSIONS = (None, "gzip", "zstd")


@dataclass(frozen=True, slots=True)
class TableFile:
    """One input table: where its data and its manifest lie.

    ``alias`` is any text; it is a name, never a path.
    """

    alias: str
    data_path: Path
    manifest_path: Path | None = None
    data_format: DataFormat = "jsonl"
    compression: Compression | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TableFile:
        """Parse one entry of ``tables``.

        Raises
        ------
        ValueError
            If the format or the compression is unknown.
        """
        manifest = value.get("manifest_path")
        compression = value.get("compression")
        if compression not in _COMPRESSIONS:
            raise ValueError(f"unknown compression {compression!r}")
        return cls(
            alias=str(value["alias"]),
            data_path=Path(value["data_path"]),
            manifest_path=Path(manifest) if manifest else None,
            data_format=_data_format(value.get("data_format") or "jsonl"),
            compression=cast("Compression | None", compression),
        )


@dataclass(frozen=True, slots=True)
class JobRequest:
    """Everything one job needs; all paths are absolute.

    ``hold``: the kernel may be kept if the job fails, so what the failure leaves is not to be let go of.
    """

    code: str
    output_path: Path
    manifest_path: Path
    result_path: Path
    work_dir: Path
    library: Mapping[str, str] = field(default_factory=dict)
    tables: tuple[TableFile, ...] = ()
    output_format: DataFormat = "jsonl"
    limits: Mapping[str, int] = field(default_factory=dict)
    hold: bool = False

    @classmethod
    def from_json(cls, text: str) -> JobRequest:
        """Parse the request; the gateway has validated what came from outside.

        Raises
        ------
        ValueError, KeyError
            If the text is no request of version 1.
        """
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("the request is no object")
        if value.get("version") != 1:
            raise ValueError(f"unknown request version {value.get('version')!r}")
        return cls(
            code=value["code"],
            library=dict(value.get("library") or {}),
            tables=tuple(TableFile.from_json(entry) for entry in value.get("tables") or ()),
            output_format=_data_format(value.get("output_format") or "jsonl"),
            output_path=Path(value["output_path"]),
            manifest_path=Path(value["manifest_path"]),
            result_path=Path(value["result_path"]),
            work_dir=Path(value["work_dir"]),
            limits=dict(value.get("limits") or {}),
            hold=bool(value.get("hold")),
        )


def _data_format(value: object) -> DataFormat:
    if value not in _FORMATS:
        raise ValueError(f"unknown data format {value!r}")
    return cast("DataFormat", value)
