"""A table of a live Metabase as JSON lines and a manifest, over its REST API.

The rows come from ``POST /api/dataset``, page by page. It returns arrays in a known column order and typed values. The
export route ``/api/dataset/json`` names columns by their display names, which need not be unique, and refuses some API
keys. ``/api/dataset`` returns at most 2,000 rows, hence the pages. Pages need a total order: the primary key, or every
sortable column where there is no key. Rows written meanwhile may be read twice or not at all, as with any paged read.

Values are written as Metabase itself writes them for its runner: numbers with all their digits, dates as text, and
types without a counterpart as a string with their JSON.
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

from gateway.core.job import MetabaseSource
from gateway.storage.objects.client import ObjectClient
from gateway.storage.objects.errors import StatusError, StorageError
from gateway.storage.objects.retries import RetryPolicy, error_from

PAGE_ROWS = 2000

#: Largest answer that is read; a page of 2,000 rows has a few MB.
ANSWER_BYTES = 256 << 20

#: Base type to the first ancestor that Metabase writes natively. A zoned date-time is a DateTime first, so that is its
#: root.
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


async def read_table(client: ObjectClient, source: MetabaseSource, write: Write) -> dict[str, Any]:
    """Pass the rows of a table to `write` as JSON lines, page by page, and return the table's manifest.

    Parameters
    ----------
    client : ObjectClient
        Sends the requests.
    source : MetabaseSource
        Server, API key and table.
    write : callable
        Awaited with each page.

    Returns
    -------
    dict
        The manifest as Metabase writes it for its runner.

    Raises
    ------
    StorageError
        Metabase could not be reached, refused the key, or answered something unexpected; the text has no secret.
    """
    metadata = await _ask(client, source, "GET", f"/api/table/{source.table_id}/query_metadata")
    database_id, fields = _table(metadata)
    page, cut_at = 1, 0
    while True:
        query = _query(database_id, source.table_id, fields, page)
        rows = _rows(await _ask(client, source, "POST", "/api/dataset", query), len(fields))
        if not rows:
            return _manifest(source.table_id, fields)
        if cut_at:
            # a short page is the last one, unless a lower row limit cut it: rows would then be missing silently
            text = f"Metabase answers {cut_at} rows at once, but {PAGE_ROWS} are needed"
            raise StorageError(f"{text}; raise its MB_UNAGGREGATED_QUERY_ROW_LIMIT", is_transient=False)
        try:
            lines = await asyncio.to_thread(_encode, rows, fields)
        except (TypeError, ValueError, RecursionError):  # of other lengths, or nested too deeply
            raise StorageError("Metabase answered rows in an unexpected form") from None
        await write(lines)
        cut_at = len(rows) if len(rows) < PAGE_ROWS else 0
        page += 1


def _table(metadata: Any) -> tuple[int, list[_Field]]:
    """Return the database and the active fields, in the database's order."""
    try:
        database_id, fields = metadata["db_id"], [_field(f) for f in _readable(metadata["fields"])]
        if type(database_id) is not int:  # int() of the Decimal of 1e10000000 takes longer than ten minutes
            raise TypeError
    except (KeyError, TypeError, AttributeError):
        raise StorageError("Metabase described the table in an unexpected form") from None
    if not fields:
        raise StorageError("the table has no columns that this API key may read", is_transient=False)
    return database_id, fields


def _readable(fields: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the top-level active fields without hidden ones, as Metabase does."""
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
    """Return a type's name without ``type/``, as in the manifests for the runner."""
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
    """Return the rows of an answer; a failed query has a 2xx status and an error in the body."""
    data = answer.get("data") if isinstance(answer, dict) else None
    rows = data.get("rows") if isinstance(data, dict) else None
    if not isinstance(rows, list) or answer.get("status", "completed") != "completed":
        raise StorageError("Metabase could not run the query for the table's rows; see its own log")
    if not all(isinstance(row, list) for row in rows):
        raise StorageError("Metabase answered rows in an unexpected form")
    if rows and len(rows[0]) != width:
        raise StorageError(f"Metabase answered {len(rows[0])} columns instead of {width}")
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
        return orjson.Fragment(value)  # the REST API writes integers beyond 2^53 as text, for browsers
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        return orjson.Fragment(str(value))
    if native:
        return value
    if isinstance(value, Decimal):
        return str(value)
    # the digits of a number inside are those of a float, as in any JSON reader
    return None if value is False else json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=float)


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


async def _ask(client: ObjectClient, source: MetabaseSource, method: str, path: str, body: Any = None) -> Any:
    url = source.base_url.rstrip("/") + path
    content = None if body is None else orjson.dumps(body)
    headers = {"x-api-key": source.api_key, "Accept": "application/json"}
    if content is not None:
        headers["Content-Type"] = "application/json"

    async def attempt() -> bytes:
        async with client.request(method, url, headers=headers, content=content) as answer:
            if not 200 <= answer.status < 300:
                raise await error_from(answer)
            found = await answer.read(ANSWER_BYTES)
            if found is None:
                raise StorageError(f"Metabase answered more than {ANSWER_BYTES} bytes for {PAGE_ROWS} rows")
            return found

    try:
        answer = await RetryPolicy(client.stall_seconds).run(attempt)
    except StatusError as error:
        advice = "; check the API key and what it may see" if error.status in (401, 403) else ""
        text = f"Metabase at {error.authority} answered {error.status} to {path}{advice}"
        raise StorageError(text, is_transient=error.is_transient) from None
    except StorageError as error:
        text = str(error).replace("the storage", "Metabase", 1)
        raise StorageError(text, is_transient=error.is_transient) from None
    try:
        # Decimal keeps every digit of a numeric column; a float would not
        return await asyncio.to_thread(json.loads, answer, parse_float=Decimal)
    except (ValueError, RecursionError):
        raise StorageError(f"Metabase's answer to {path} is not JSON") from None


async def find_table(client: ObjectClient, base_url: str, api_key: str, name: str) -> int:
    """Return the id of a table by its name: ``orders`` or, with its schema, ``public.orders``.

    Parameters
    ----------
    client : ObjectClient
        Sends the request.
    base_url : str
        URL of the Metabase server.
    api_key : str
        Key of that server.
    name : str
        Matched in any case.

    Returns
    -------
    int

    Raises
    ------
    StorageError
        As in `read_table`; or there is no such table, or there are several, which the text names.
    """
    found = await _ask(client, MetabaseSource(base_url, api_key, 0), "GET", "/api/table")
    tables = [t for t in found if isinstance(t, dict) and "id" in t] if isinstance(found, list) else []
    wanted = name.casefold()
    exact = [t for t in tables if wanted in (str(t.get("name")).casefold(), _full_name(t).casefold())]
    if len(exact) == 1:
        return int(exact[0]["id"])
    if exact:
        choices = ", ".join(f"{_full_name(t)} of database {t.get('db_id')} (metabase:{t['id']})" for t in exact[:10])
        raise StorageError(f"Metabase has {len(exact)} tables named {name!r}: {choices}")
    close = difflib.get_close_matches(wanted, [str(t.get("name")).casefold() for t in tables], n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else " that this API key may see"
    raise StorageError(f"Metabase has no table named {name!r}{hint}")


def _full_name(table: dict[str, Any]) -> str:
    return f"{table['schema']}.{table.get('name')}" if table.get("schema") else str(table.get("name"))
