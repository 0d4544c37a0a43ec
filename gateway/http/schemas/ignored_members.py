"""Report the members of a request that the gateway ignores. Only names are shown: values may be secret."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gateway.http.schemas.validation import RequestModel

#: Members for the script that Metabase's data ingestion sends; no released version of it does.
NOT_PASSED = ("secrets", "state")

#: Unknown members that are looked at, so that a request with very many costs little.
MOST_MEMBERS = 20

SHOWN_CHARACTERS = 40

#: As `difflib.get_close_matches` counts: one letter more or less in a short name is above it.
SIMILARITY = 0.8


@dataclass(frozen=True, slots=True)
class IgnoredMembers:
    """Members that have no effect.

    Attributes
    ----------
    warnings : tuple of str
        Lines for the job's log.
    unknown : tuple of str
        Other names, printable, for the gateway's log.
    """

    warnings: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def ignored_members(model: type[RequestModel], value: Mapping[str, Any]) -> IgnoredMembers:
    """Return the reports about the members of a request that `model` does not have.

    Parameters
    ----------
    model : type of RequestModel
        The model of the request.
    value : mapping of str to Any
        The request as sent.

    Returns
    -------
    IgnoredMembers
    """
    known = tuple(model.model_fields)
    warnings, unknown = [], []
    not_passed = [name for name in NOT_PASSED if name not in known and value.get(name) is not None]
    if not_passed:
        names = " and ".join(f"`{name}`" for name in not_passed)
        warnings.append(f"WARNING: This gateway does not pass {names} of the request to transform()")
    others = (name for name in value if name not in known and name not in NOT_PASSED)
    for name in islice(others, MOST_MEMBERS):
        shown = ascii(name[:SHOWN_CHARACTERS])
        similar = difflib.get_close_matches(name[:SHOWN_CHARACTERS], known, 1, SIMILARITY)
        if similar:
            warnings.append(f"WARNING: The request's member {shown} is ignored; did you mean {similar[0]!r}?")
        else:
            unknown.append(shown)
    return IgnoredMembers(tuple(warnings), tuple(unknown))
