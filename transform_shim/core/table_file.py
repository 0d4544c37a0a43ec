"""One input table as files: the paths of its data and its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transform_shim.core.formats import COMPRESSIONS, Compression, DataFormat
from transform_shim.core.formats import data_format as parse_format

__all__ = ["TableFile"]


@dataclass(frozen=True, slots=True)
class TableFile:
    """One input table: the paths of its data and its manifest.

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
        if compression is not None and compression not in COMPRESSIONS:
            raise ValueError(f"unknown compression {compression!r}")
        return cls(
            alias=str(value["alias"]),
            data_path=Path(value["data_path"]),
            manifest_path=Path(manifest) if manifest else None,
            data_format=parse_format(value.get("data_format") or "jsonl"),
            compression=cast("Compression | None", compression),
        )
