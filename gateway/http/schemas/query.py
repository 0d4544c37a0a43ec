"""Query parameters: an unknown one is refused, because the answer would be about other jobs than the caller means."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from gateway.core.errors import BadRequest

SHOWN_CHARACTERS = 60


def check_names(given: Iterable[str], known: Collection[str]) -> None:
    """Check that all names of query parameters are known.

    Parameters
    ----------
    given : iterable of str
        Names in the URL of a request.
    known : collection of str
        Names that the route accepts.

    Raises
    ------
    BadRequest
        The text names the first unknown one, and the one that was probably meant.
    """
    for name in given:
        if name not in known:
            shown = name[:SHOWN_CHARACTERS]
            near = difflib.get_close_matches(shown, known, 1)
            expected = f"expected one of {', '.join(known)}" if known else "this route takes none"
            hint = f"did you mean {near[0]}?" if near else expected
            raise BadRequest(f"{shown}: there is no such query parameter; {hint}", field=shown)
