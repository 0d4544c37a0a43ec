"""The columns of a table file, block by block, as every reader of a format yields them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pyarrow as pa

from transform_shim.core.manifest import Field

__all__ = ["BlockFile", "ColumnBlock"]


class ColumnBlock:
    """Some rows of a table file.

    Parameters
    ----------
    arrays : list of pyarrow.Array
        The columns, in the order of the fields. Numbers and date-times that no Arrow type holds together are texts.
    rows : int
        Length of each of them.
    end_bytes : int
        Where the block ends in the file, unpacked.
    """

    __slots__ = ("arrays", "end_bytes", "rows")

    def __init__(self, arrays: list[pa.Array], rows: int, end_bytes: int) -> None:
        self.arrays, self.rows, self.end_bytes = arrays, rows, end_bytes


class BlockFile(Protocol):
    """A file that can be read in blocks of columns, any number of times."""

    fields: tuple[Field, ...]

    def blocks(self) -> Iterator[ColumnBlock]: ...
