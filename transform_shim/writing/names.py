"""Column names as texts.

Names that are no text become their ``str()`` (0 is "0"); the levels of a MultiIndex are joined by ``_``, empty ones
left out, as ``("price", "mean")`` is "price_mean" and ``("key", "")`` is "key". Two columns of one name are an error:
JSON could not tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transform_shim.errors import OutputInvalid, shorten

__all__ = ["text_names"]


def text_names(labels: Iterable[Any]) -> list[str]:
    """The names to be written.

    Raises
    ------
    OutputInvalid
        If two are the same, or one holds half a surrogate pair.
    """
    names: dict[str, Any] = {}
    for label in labels:
        name = _text(label)
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
    return list(names)


def _text(label: Any) -> str:
    if type(label) is str:
        return label
    if isinstance(label, tuple):
        return "_".join(part for part in map(_text, label) if part)
    try:
        return str(label)
    except Exception as error:  # a label of the user's own class
        raise OutputInvalid(f"a column name of type {type(label).__name__} has no text ({error})") from None
