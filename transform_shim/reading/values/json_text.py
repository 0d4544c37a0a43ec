"""JSON lines one by one: slow, exact, and with precise errors.

The fast reader hands over the blocks it cannot take: numbers beyond 64 bits, doubles that Java wrote as ``"NaN"``,
texts where none were announced, repeated keys (the last one counts, as in every JSON parser), and every mistake.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from transform_shim.core.errors import InputInvalid, cut

__all__ = ["GZIP_MARK", "GZIP_TEXT", "json_text", "rows_of"]

_KEY = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:')
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
#: Of a file that the storage served without a `Content-Encoding`; browsers and clients unpack by the name.
GZIP_MARK = b"\x1f\x8b"
GZIP_TEXT = "it is compressed with gzip, which its Content-Encoding does not say: unpack it, or set that header"


def rows_of(data: bytes, table: str, *, is_first: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a block with their line numbers in it; numbers with a point become Decimals.

    Raises
    ------
    InputInvalid
        At the first line that is not one JSON object in UTF-8.
    """
    if is_first:
        if data.startswith(_UTF16_MARKS):
            raise InputInvalid(table, "the file is not UTF-8 (it begins like UTF-16)", line=1)
        if data.startswith(GZIP_MARK):
            raise InputInvalid(table, GZIP_TEXT)
        data = data.removeprefix(b"\xef\xbb\xbf")
    lines = data.split(b"\n")  # nothing follows the last line feed; only a file's last line may lack it
    for number, raw in enumerate(lines, 1):
        if raw.isspace() or not raw:
            continue
        for row in _objects(_decode(raw, table, number), table, number, is_last=number == len(lines)):
            yield number, row


def _decode(raw: bytes, table: str, line: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        column = _last_key(raw[: error.start].decode())
        problem = f"not valid UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start} of the line)"
        raise InputInvalid(table, problem, line=line, column=column) from None


def _objects(text: str, table: str, line: int, *, is_last: bool) -> Iterator[dict[str, Any]]:
    """Yield the objects of a line: usually one, but several without a line feed between them are read as well."""
    position = 0
    text = text.strip()
    while position < len(text):
        try:
            value, position = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            is_short = error.pos >= len(text) or error.msg.startswith("Unterminated string")
            problem = "the line is cut short" if is_short else f"not valid JSON ({error.msg})"
            if is_short and is_last:
                problem += " (the file ends within it)"
            problem += f" at character {error.pos + 1}"
            raise InputInvalid(table, problem, line=line, column=_last_key(text[: error.pos])) from None
        except (ValueError, RecursionError, ArithmeticError) as error:  # thousands of digits or brackets, 1e9999999999
            raise InputInvalid(table, f"not readable as JSON ({error})", line=line) from None
        if not isinstance(value, dict):
            raise InputInvalid(table, f"expected one JSON object a line, found {cut(text)}", line=line)
        yield value
        while position < len(text) and text[position].isspace():
            position += 1


def _last_key(text: str) -> str | None:
    """Return the last key in a piece of a line: the column in which reading stopped."""
    keys = _KEY.findall(text)
    if not keys:
        return None
    try:
        return str(json.loads(f'"{keys[-1]}"'))
    except ValueError:
        return str(keys[-1])


def json_text(value: object) -> str:
    """Return a parsed JSON value as compact text; Decimals keep their digits."""
    for kind, render in _RENDERERS:
        if isinstance(value, kind):
            return render(value)
    return json.dumps(value, ensure_ascii=False)


_RENDERERS: tuple[tuple[type, Callable[[Any], str]], ...] = (
    (str, lambda value: json.dumps(value, ensure_ascii=False)),
    (Decimal, str),
    (dict, lambda value: "{" + ",".join(f"{json_text(k)}:{json_text(v)}" for k, v in value.items()) + "}"),
    (list, lambda value: "[" + ",".join(map(json_text, value)) + "]"),
)
_DECODER = json.JSONDecoder(parse_float=Decimal)
