"""The buffers of Arrow arrays as numpy arrays, without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

__all__ = ["Mask", "null_mask", "numbers", "used_bytes"]

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def null_mask(array: pa.Array) -> Mask:
    """Return the mask of the nulls of an array that has some.

    ``is_null().to_numpy()`` goes bit by bit and takes ten times as long.
    """
    first_byte, skipped = divmod(array.offset, 8)
    packed = np.frombuffer(array.buffers()[0], np.uint8, offset=first_byte)
    is_null: Mask = np.unpackbits(packed, count=skipped + len(array), bitorder="little")[skipped:] == 0
    return is_null


def numbers(array: pa.Array) -> np.ndarray[Any, Any]:
    """Return the numbers of an array without a copy; those of nulls are arbitrary."""
    kind = np.dtype(array.type.to_pandas_dtype())
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * kind.itemsize)


def used_bytes(array: pa.Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the bytes of a large_string array's texts, without a copy."""
    offsets_buffer, data = array.buffers()[1:3]
    if data is None or offsets_buffer is None or not len(array):
        return np.empty(0, dtype=np.uint8)
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)
    start, stop = offsets[array.offset], offsets[array.offset + len(array)]
    return np.frombuffer(data, dtype=np.uint8)[start:stop]
