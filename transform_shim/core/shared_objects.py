"""Texts of pandas 2, where equal texts are often one Python object, as in every table that the shim has read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

__all__ = ["plain_texts", "text_array"]

#: Number of objects in the sample; with fewer rows sharing does not pay.
_SAMPLE = 1024
#: Largest number of different objects in the sample with which sharing still pays.
_MOST_DIFFERENT = 960


def text_array(values: np.ndarray[Any, Any]) -> pa.Array:
    """Return texts and nulls as an Arrow array, a dictionary where rows share objects.

    Arrow converts each object by itself, under the GIL: 45 ns a row. Here it converts each object once; the rest runs
    without the GIL, and a writer of lines renders each text only once too.

    Parameters
    ----------
    values : array of object
        Texts and nulls.

    Returns
    -------
    pa.LargeStringArray or pa.DictionaryArray
        Of a dictionary, each value is that of some row. Nulls are values, and no index is null.

    Raises
    ------
    UnicodeEncodeError, pa.ArrowInvalid, pa.ArrowTypeError
        A value is not a valid text.
    """
    kind = pa.large_string()
    if len(values) < _SAMPLE:
        return pa.array(values, kind, from_pandas=True)
    # an array of objects holds their addresses; `values` keeps the objects alive
    addresses = np.frombuffer(values.tobytes(), np.intp)
    if len(set(addresses[:: len(values) // _SAMPLE].tolist())) > _MOST_DIFFERENT:
        return pa.array(values, kind, from_pandas=True)
    places, different = pd.factorize(addresses)
    rows = np.empty(len(different), np.intp)
    rows[places] = np.arange(len(values))  # of each object, any row
    return pa.DictionaryArray.from_arrays(
        pa.array(places.astype(np.int32)), pa.array(values[rows], kind, from_pandas=True)
    )


def plain_texts(array: pa.Array) -> pa.Array:
    """Return an array of `text_array` without its dictionary, and every other array as it is."""
    return array.dictionary.take(array.indices) if pa.types.is_dictionary(array.type) else array
