"""First-use costs, paid once before the fork server forks instead of in every job."""

from __future__ import annotations

import ctypes
import json
import tempfile
from pathlib import Path

import pandas as pd

from transform_shim.manifest import Field
from transform_shim.progress import Progress
from transform_shim.reading.source import TableSource
from transform_shim.reading.tables import load_table
from transform_shim.request import TableFile
from transform_shim.writing.frames import open_frame
from transform_shim.writing.output import write_output

__all__ = ["flush_c_streams", "warm_up"]

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


def warm_up() -> None:
    """Read and write a tiny table of every kind, so that Arrow's kernels and pandas' lazy parts are loaded.

    Leaves no thread, no descriptor and no file behind: the fork server forks afterwards. A tiny table is worked on in
    the calling thread.
    """
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
