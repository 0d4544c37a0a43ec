"""Parse a table once for several jobs: ``python -m transform_shim.reading.parse_table FORMAT DATA MANIFEST TARGET``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from transform_shim.core.errors import ShimError
from transform_shim.core.formats import data_format
from transform_shim.core.table_file import TableFile
from transform_shim.reading.columnar.parsed_table import write_parsed
from transform_shim.reading.table_source import TableSource

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Write a parsed table and return 0; return 1 on failure, which a job that reads the table itself then reports.

    Parameters
    ----------
    arguments : sequence of str
        Format, data file, manifest or an empty text, and the new file.
    """
    name, data, manifest, target = arguments
    file = TableFile("table", Path(data), Path(manifest) if manifest else None, data_format(name))
    try:
        source = TableSource(file)
        write_parsed(source.fields, source.select().blocks(), Path(target))
    except (ShimError, pa.ArrowException, OSError):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
