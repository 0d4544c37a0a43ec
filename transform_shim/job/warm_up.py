"""Pay first-use costs once, before the fork server forks, instead of in every job."""

from __future__ import annotations

import ctypes
import json
import tempfile
from pathlib import Path

import pandas as pd

from transform_shim.core.formats import load_formats
from transform_shim.core.manifest import Field
from transform_shim.core.progress import Progress
from transform_shim.core.table_file import TableFile
from transform_shim.reading.frame_kinds import load_table
from transform_shim.reading.table_source import TableSource
from transform_shim.writing.frame_source import open_frame
from transform_shim.writing.output import write_output

__all__ = ["convert_every_type", "flush_c_streams"]

_LIBC = ctypes.CDLL(None)
_FIELDS = (
    Field("i", "Integer"),
    Field("f", "Float"),
    Field("m", "Decimal"),
    Field("b", "Boolean"),
    Field("s", "Text"),
    Field("d", "Date"),
    Field("at", "DateTime"),
    Field("tz", "DateTimeWithTZ"),
)
_ROWS = (
    b'{"i":1,"f":1.5,"m":1.25,"b":true,"s":"a","d":"2024-01-15","at":"2024-01-15T10:30:00Z","tz":"2024-01-15T10:30:00Z"}\n'
    b'{"i":null,"f":null,"m":null,"b":null,"s":null,"d":null,"at":null,"tz":null}\n'
)


def flush_c_streams() -> None:
    """Flush what C code has printed and its stdio still holds."""
    _LIBC.fflush(None)


def convert_every_type() -> None:
    """Read and write a tiny table with all types, so that Arrow's kernels and pandas' lazy parts are loaded.

    Leaves no thread, no descriptor and no file behind: the fork server forks afterwards. A tiny table is worked on in
    the calling thread.
    """
    load_formats()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data_path, manifest_path = folder / "data", folder / "manifest"
        data_path.write_bytes(_ROWS)
        fields = [{"name": entry.name, "base_type": entry.base_type} for entry in _FIELDS]
        manifest_path.write_text(json.dumps({"fields": fields}))
        source = TableSource(TableFile("warm", data_path, manifest_path))
        frame: pd.DataFrame = load_table(source, "pandas").value
        frame["o"] = pd.Series(["x", None], dtype=object)
        progress = Progress(None, "write", "output")
        write_output(open_frame(frame, []), "jsonl", folder / "output", folder / "output-manifest", progress)
