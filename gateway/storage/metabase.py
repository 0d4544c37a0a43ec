"""A table of a live Metabase as JSON lines and a manifest, over its REST API.

The rows come from ``POST /api/dataset``, page by page: it gives arrays in a known column order and typed
values, where the export route ``/api/dataset/json`` names columns by their display names (which need not be
unique) and is closed to some API keys. It answers at most 2,000 rows whatever is asked, hence the pages; they
need a total order, taken from the primary key, or from every sortable column where there is none. Rows
written meanwhile may be seen twice or missed, as with any paged read.

Values are written as Metabase itself writes them for its runner: numbers with all their digits, dates as
text, and types without a counterpart as a string that holds their JSON.
"""

from __future__ import annotations

import asyncio
import difflib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import orjson

from gateway.jobs.model import MetabaseSource
from gateway.storage.exchange import Exchange
from gateway.storage.target import ExchangeError
from gateway.storage.transfer import Patience, Refused, refused

PAGE_ROWS = 2000
ANSWER_BYTES = 256 << 20
"""A page of 2,000 rows is a few MB; an answer beyond this is not one."""

ROOT_TYPES = {
    **dict.fromkeys(("Number", "Integer", "BigInteger", "Float", "Decimal"), "Number"),
    "Date": "Date",
    **dict.fromkeys(
        (
            "DateTime",
            "DateTimeWithTZ",
            "DateTimeWithLocalTZ",
            "DateTimeWithZoneOffset",
            "DateTimeWithZoneID",
            "Instant",
        ),
        "DateTime",
    ),
    **dict.fromkeys(("Text", "UUID", "PostgresEnum", "MySQLEnum"), "Text"),
    "Boolean": "Boolean",
}
"""Base type to the first ancestor that Metabase writes natively. A zoned date-time is a DateTime first, so
that is its root."""

_UNSORTABLE = {"JSON", "XML", "Structured", "Collection", "Dictionary", "Array", "*", "Large", "OracleCLOB"}

Write = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Field:
    field_id: int
    name: str
    base_type: str
    semantic_type: str | None
    effective_type: str | None
    database_type: str | None

    @property
    def root_type(self) -> str | None:
        return ROOT_TYPES.get(self.base_type)


async def read_table(source: MetabaseSource, write: Write, stall_seconds: float) -> dict[str, Any]:
    """Hand the rows of a table to `write` as JSON lines, page by page, and return the table's manifest.

    Raises
    ------
    ExchangeError
        Metabase could not be reached, refused the key, or answered something else; the text holds no secret.
    """
    metadata = await _ask(source, "GET", f"/api/table/{source.table_id}/query_metadata", None, stall_seconds)
    database_id, fields = _table(metadata)
    page, cut_at = 1, 0
    while True:
        query = _query(database_id, source.table_id, fields, page)
        rows = _rows(await _ask(source, "POST", "/api/dataset", query, stall_seconds), len(fields))
        if not rows:
            return _manifest(source.table_id, fields)
        if cut_at:
            # a short page is the last one, unless a lower row limit cut it: then rows would be missing without a word
            text = f"Metabase answers {cut_at} rows at once, and {PAGE_ROWS} are needed"
            raise ExchangeError(f"{text}; raise its MB_UNAGGREGATED_QUERY_ROW_LIMIT")
        await write(await asyncio.to_thread(_encode, rows, fields))
        cut_at = len(rows) if len(rows) < PAGE_ROWS else 0
        page += 1


def _table(metadata: Any) -> tuple[int, list[_Field]]:
    """Return the database and the active fields, in the database's order."""
    try:
        database_id, fields = int(metadata["db_id"]), [_field(f) for f in _readable(metadata["fields"])]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ExchangeError("Metabase described the table in a way that is not understood") from None
    if not fields:
        raise ExchangeError("the table has no columns that this API key may read")
    return database_id, fields


def _readable(fields: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the top-level active fields; a hidden one is left out, as Metabase leaves it out."""
    found = [f for f in fields if f.get("active", True) and not f.get("parent_id")]
    found = [f for f in found if f.get("visibility_type") not in ("sensitive", "retired")]
    return sorted(found, key=lambda f: (f.get("database_position") or 0, f.get("position") or 0, f["id"]))


def _field(field: dict[str, Any]) -> _Field:
    return _Field(
        field["id"],
        field["name"],
        _bare(field.get("base_type")) or "*",
        _bare(field.get("semantic_type")),
        _bare(field.get("effective_type")),
        field.get("database_type"),
    )


def _bare(type_name: str | None) -> str | None:
    """Return a type's name as the runner's manifests have it: without ``type/``."""
    return None if type_name is None else type_name.removeprefix("type/")


def _query(database_id: int, table_id: int, fields: Sequence[_Field], page: int) -> dict[str, Any]:
    references = {f.field_id: ["field", f.field_id, None] for f in fields}
    keys = [f for f in fields if f.semantic_type == "PK"] or [f for f in fields if f.base_type not in _UNSORTABLE]
    return {
        "database": database_id,
        "type": "query",
        "query": {
            "source-table": table_id,
            "fields": list(references.values()),
            "order-by": [["asc", references[f.field_id]] for f in keys],
            "page": {"page": page, "items": PAGE_ROWS},
        },
    }


def _rows(answer: Any, width: int) -> list[list[Any]]:
    """Return the rows of an answer; a failed query comes with a 2xx status and says so inside."""
    data = answer.get("data") if isinstance(answer, dict) else None
    rows = data.get("rows") if isinstance(data, dict) else None
    if not isinstance(rows, list) or answer.get("status", "completed") != "completed":
        raise ExchangeError("Metabase could not run the query for the table's rows; its own log says why")
    if rows and len(rows[0]) != width:
        raise ExchangeError(f"Metabase answered {len(rows[0])} columns instead of {width}")
    return rows


def _encode(rows: list[list[Any]], fields: Sequence[_Field]) -> bytes:
    names = [f.name for f in fields]
    natives = [f.root_type is not None for f in fields]
    numbers = [f.root_type == "Number" for f in fields]
    lines = [
        orjson.dumps(
            {
                name: _value(value, native, number)
                for name, value, native, number in zip(names, row, natives, numbers, strict=True)
            },
            option=orjson.OPT_APPEND_NEWLINE,
            default=_exact,
        )
        for row in rows
    ]
    return b"".join(lines)


def _value(value: Any, native: bool, number: bool) -> Any:
    if value is None:
        return None
    if number and isinstance(value, str) and _is_integer(value):
        return orjson.Fragment(value)  # the REST API turns integers beyond 2^53 into text, for browsers
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        return orjson.Fragment(str(value))
    if native:
        return value
    return None if value is False else json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def _is_integer(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and (digits == "0" or not digits.startswith("0"))


def _exact(value: object) -> orjson.Fragment:
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value))
    raise TypeError(f"cannot write {type(value)}")


def _manifest(table_id: int, fields: Sequence[_Field]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "data_format": "jsonl",
        "data_version": 1,
        "table_metadata": {"table_id": table_id},
        "fields": [
            {
                "name": f.name,
                "base_type": f.base_type,
                "database_type": f.database_type,
                "root_type": f.root_type,
                "semantic_type": f.semantic_type,
                "effective_type": f.effective_type or f.database_type,
                "field_id": f.field_id,
            }
            for f in fields
        ],
    }


async def _ask(source: MetabaseSource, method: str, path: str, body: Any, stall_seconds: float) -> Any:
    url = source.base_url.rstrip("/") + path
    content = b"" if body is None else orjson.dumps(body)
    headers = {"x-api-key": source.api_key, "Accept": "application/json"}
    if body is not None:
        headers |= {"Content-Type": "application/json", "Content-Length": str(len(content))}

    async def attempt() -> bytes:
        async with Exchange(method, url, headers, stall_seconds) as exchange:
            if content:
                await exchange.send(content)
            if not 200 <= await exchange.answer() < 300:
                raise await refused(exchange)
            answer = await exchange.whole(ANSWER_BYTES)
            if answer is None:
                raise ExchangeError(f"Metabase answered more than {ANSWER_BYTES} bytes for {PAGE_ROWS} rows")
            return answer

    try:
        answer = await Patience(stall_seconds).try_again(attempt)
    except ExchangeError as error:
        raise ExchangeError(str(error).replace("the storage", "Metabase", 1)) from None
    except Refused as refusal:
        advice = "; check the API key and what it may see" if refusal.status in (401, 403) else ""
        raise ExchangeError(f"Metabase at {refusal.authority} answered {refusal.status} to {path}{advice}") from None
    try:
        # Decimal keeps every digit of a numeric column; a float would not
        return await asyncio.to_thread(json.loads, answer, parse_float=Decimal)
    except ValueError:
        raise ExchangeError(f"Metabase answered {path} with something that is not JSON") from None


async def find_table(base_url: str, api_key: str, name: str, stall_seconds: float) -> int:
    """Return the id of the table that a person calls `name`: ``orders`` or, with its schema, ``public.orders``.

    Raises
    ------
    ExchangeError
        As for `read_table`; or there is no such table, or there are several: the text then names them.
    """
    found = await _ask(MetabaseSource(base_url, api_key, 0), "GET", "/api/table", None, stall_seconds)
    tables = [t for t in found if isinstance(t, dict) and "id" in t] if isinstance(found, list) else []
    wanted = name.casefold()
    exact = [t for t in tables if wanted in (str(t.get("name")).casefold(), _full_name(t).casefold())]
    if len(exact) == 1:
        return int(exact[0]["id"])
    if exact:
        choices = ", ".join(f"{_full_name(t)} of database {t.get('db_id')} (metabase:{t['id']})" for t in exact[:10])
        raise ExchangeError(f"Metabase has {len(exact)} tables named {name!r}: {choices}")
    close = difflib.get_close_matches(wanted, [str(t.get("name")).casefold() for t in tables], n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else " that this API key may see"
    raise ExchangeError(f"Metabase has no table named {name!r}{hint}")


def _full_name(table: dict[str, Any]) -> str:
    return f"{table['schema']}.{table.get('name')}" if table.get("schema") else str(table.get("name"))
