"""Tables in the kernel's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.core.formats import DataFormat


@dataclass(frozen=True, slots=True)
class LoadedTable:
    """The files of a table: its data, which is never compressed, and its manifest."""

    data_path: Path
    manifest_path: Path | None
    data_format: DataFormat

    def to_json(self) -> dict[str, Any]:
        """Return the table in the form for the kernel."""
        return {
            "data_path": str(self.data_path),
            "manifest_path": str(self.manifest_path) if self.manifest_path else None,
            "data_format": self.data_format,
            "size_bytes": self.data_path.stat().st_size,
        }
