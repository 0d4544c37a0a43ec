"""Column names as texts.

Names that are not texts become their ``str()`` (0 is "0"); the levels of a MultiIndex are joined by ``_``, empty ones
left out, as ``("price", "mean")`` is "price_mean" and ``("key", "")`` is "key". Two columns of one name are an error:
JSON could not tell them apart. Empty and missing names, and names that differ only in case, are named in a warning.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from transform_shim.core.errors import OutputInvalid, shorten
from transform_shim.core.notices import warn

__all__ = ["label_text", "text_names"]


def text_names(labels: Iterable[Any]) -> list[str]:
    """Return the names to be written.

    Raises
    ------
    OutputInvalid
        If two are the same, or one holds half a surrogate pair.
    """
    names: dict[str, Any] = {}
    for label in labels:
        name = label_text(label)
        if name in names:
            other = names[name]
            if isinstance(label, str) and isinstance(other, str):
                raise OutputInvalid("the frame has two columns of this name", column=name)
            raise OutputInvalid(f"the columns {shorten(other)} and {shorten(label)} have the same name", column=name)
        try:
            name.encode()
        except UnicodeEncodeError:
            raise OutputInvalid("the name holds half a surrogate pair", column=name) from None
        names[name] = label
    _warn_of_odd_names(names)
    return list(names)


def _warn_of_odd_names(labels: dict[str, Any]) -> None:
    """Name the columns that a database is likely to refuse or to confuse."""
    if "" in labels:
        warn("a column has an empty name")
    by_case: dict[str, str] = {}
    for name, label in labels.items():
        if label is None or label is pd.NA or label is pd.NaT or (isinstance(label, float) and label != label):
            warn(f"a column has no name, and is written as {name!r}")
        other = by_case.setdefault(name.casefold(), name)
        if other != name:
            warn(f"the columns {other!r} and {name!r} differ only in case")


def label_text(label: Any) -> str:
    """Return the text of a column's label."""
    if type(label) is str:
        return label
    if isinstance(label, tuple):
        return "_".join(part for part in map(label_text, label) if part)
    try:
        return str(label)
    except Exception as error:  # a label of the user's own class
        raise OutputInvalid(f"a column name of type {type(label).__name__} has no text ({error})") from None
