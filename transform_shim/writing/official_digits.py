"""Floats as the official runner writes them, for `OFFICIAL_COMPATIBILITY`: with ten decimals, so that 1e-12 is 0."""

from __future__ import annotations

import dataclasses
import json

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from transform_shim.writing.frame_source import Batch, OutputFrame

__all__ = ["with_official_digits"]


def with_official_digits(frame: OutputFrame) -> OutputFrame:
    """Return the frame with its floats rounded by ``DataFrame.to_json``, which the official runner calls.

    Parameters
    ----------
    frame : OutputFrame
        The frame to be written.

    Returns
    -------
    OutputFrame
        The same columns and rows; floats are doubles, because pandas rounds a ``float32`` as a double: 0.1000000015.
    """
    types = [pa.float64() if pa.types.is_floating(kind) else kind for kind in frame.types]
    return dataclasses.replace(frame, types=types, batches=(_rounded(batch) for batch in frame.batches))


def _rounded(batch: Batch) -> Batch:
    def load() -> list[pa.Array]:
        return [_round(array) if pa.types.is_floating(array.type) else array for array in batch.load()]

    return Batch(batch.first_row, batch.rows, load)


def _round(array: pa.Array) -> pa.Array:
    text = pd.DataFrame({"v": array.to_pandas()}).to_json(orient="values", double_precision=10)
    rounded = pa.array([row[0] for row in json.loads(text)], type=pa.float64())
    # the largest double has ten digits that no double holds: it keeps its value instead of becoming infinite
    return pc.if_else(pc.is_inf(rounded), array.cast(pa.float64()), rounded)
