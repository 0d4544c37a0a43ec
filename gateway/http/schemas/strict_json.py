"""A strict JSON parser for request bodies: it refuses, with a reason, input whose meaning would be a guess."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from gateway.core.errors import BadRequest

#: Most values in one body. Beside its texts, a request has a table of columns or of URLs at most, and in Python a value
#: takes up to 35 times its text: 64 MiB of empty lists took 2 GB and held the interpreter for eight seconds.
MOST_VALUES = 100_000

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")

#: A text, also one without an end; possessive, so that no text is read twice.
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


def parse_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data`.

    Stricter than `json.loads`: UTF-8 only (not UTF-16, no byte order mark), no NaN or Infinity, no duplicate keys, no
    lone surrogates, an object at the top, and `MOST_VALUES` at most.

    Raises
    ------
    BadRequest
        The text has the error and its place.
    """
    _check_value_count(data)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not valid UTF-8 (byte {error.start})") from None
    if not text.strip():
        raise BadRequest("the body is empty; expected a JSON object")
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
        if _SURROGATE_ESCAPE.search(text):
            # a lone surrogate would pass here and fail where the text is written
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise BadRequest(f"the body is not valid JSON: {error.msg} ({where})") from None
    except UnicodeEncodeError:
        raise BadRequest("the body has an escape of a lone surrogate (\\ud800 to \\udfff)") from None
    except ValueError:
        # Python's limit for the digits of an integer
        raise BadRequest("the body has a number with too many digits") from None
    if not isinstance(value, dict):
        raise BadRequest(f"the body must be a JSON object, not {words_for(value)}")
    return value


def _check_value_count(data: bytes) -> None:
    """Count the commas outside of texts: the nesting, which adds values without them, has a limit of its own."""
    if data.count(b",") < MOST_VALUES:
        return
    count = end = 0
    for text in _TEXT.finditer(data):
        count += data.count(b",", end, text.start())
        end = text.end()
        if count >= MOST_VALUES:
            break
    if count + data.count(b",", end) >= MOST_VALUES:
        raise BadRequest(f"the body has more than {MOST_VALUES} values, the most that are accepted")


def words_for(value: object) -> str:
    """Return words for a JSON value, without the content of texts, which may be secret or long."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value) if isinstance(value, float) or abs(value) < 10**20 else "a number of many digits"
        case str():
            return "a text"
        case list():
            return "a list"
        case _:
            return "an object"


def _refuse_constant(name: str) -> NoReturn:
    raise BadRequest(f"the body is not valid JSON: {name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise BadRequest(f"duplicate key {key[:60]!r} in a JSON object")
        seen.add(key)
    return members
