"""A table read from Metabase's REST API looks as if Metabase had sent it: same values, same manifest, all rows."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from gateway.core.errors import JobFailed
from gateway.core.job import InputTable, MetabaseSource
from gateway.core.settings import Settings
from gateway.storage import ObjectClient
from gateway.storage.inputs import metabase
from gateway.storage.inputs.fetch import fetch_tables
from gateway.storage.inputs.fetched_table import FetchedTable
from gateway.storage.objects import retries
from tests.gateway.storage.conftest import Recorder
from tests.gateway.storage.faulty_server import Behave, FaultyServer, answer, reset

FIELDS = [
    # as query_metadata has them, in another order than the database's
    {"id": 12, "name": "when", "base_type": "type/DateTimeWithLocalTZ", "database_type": "timestamptz", "position": 2},
    {"id": 11, "name": "amount", "base_type": "type/Decimal", "effective_type": "type/Decimal", "position": 1},
    {"id": 10, "name": "id", "base_type": "type/BigInteger", "semantic_type": "type/PK", "position": 0},
    {"id": 13, "name": "tags", "base_type": "type/Array", "database_type": "_text", "position": 3},
    {"id": 14, "name": "note", "base_type": "type/Text", "database_type": "text", "position": 4},
    {"id": 15, "name": "ok", "base_type": "type/Boolean", "database_type": "bool", "position": 5},
    {"id": 16, "name": "gone", "base_type": "type/Text", "active": False, "position": 6},
    {"id": 17, "name": "pin", "base_type": "type/Text", "visibility_type": "sensitive", "position": 7},
]
METADATA = {"id": 7, "db_id": 3, "fields": FIELDS}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "RETRY_DELAYS_SECONDS", (0.01, 0.02, 0.03))
    monkeypatch.setattr(metabase, "PAGE_ROWS", 2)


def page(*rows: str) -> Behave:
    """Answer a query as Metabase does: 202, and the outcome inside."""
    return answer(202, f'{{"status":"completed","data":{{"rows":[{",".join(rows)}]}}}}'.encode())


def row(number: int) -> str:
    return f'["{number}",1,null,null,"n",false]'


async def read(client: ObjectClient, server: FaultyServer, settings: Settings, into: Path) -> FetchedTable:
    source = MetabaseSource(f"http://127.0.0.1:{server.port}/base/", "mb_k3y", 7)
    (fetched,) = await fetch_tables(client, (InputTable("t", source),), into, settings, Recorder())
    return fetched


async def test_values_and_manifest_are_those_of_the_wire_contract(
    client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    exact = '["9007199254740993",123456789.1234567890,"2024-01-15T10:30:00Z",["a",{"b":0.10}],"\\u2603",true]'
    nulls = "[18446744073709551617,null,null,0.1234567890123456789,null,null]"
    with FaultyServer([answer(200, json.dumps(METADATA).encode()), page(exact, nulls), page()]) as server:
        fetched = await read(client, server, settings, tmp_path)
    assert fetched.data_path.read_text().splitlines() == [
        '{"id":9007199254740993,"amount":123456789.1234567890,"when":"2024-01-15T10:30:00Z",'
        '"tags":"[\\"a\\",{\\"b\\":0.1}]","note":"\N{SNOWMAN}","ok":true}',
        '{"id":18446744073709551617,"amount":null,"when":null,"tags":"0.1234567890123456789","note":null,"ok":null}',
    ]
    assert fetched.manifest_path is not None
    manifest = json.loads(fetched.manifest_path.read_bytes())
    assert {k: v for k, v in manifest.items() if k != "fields"} == {
        "schema_version": 1,
        "data_format": "jsonl",
        "data_version": 1,
        "table_metadata": {"table_id": 7},
    }
    assert [(f["name"], f["base_type"], f["root_type"], f["field_id"]) for f in manifest["fields"]] == [
        ("id", "BigInteger", "Number", 10),
        ("amount", "Decimal", "Number", 11),
        ("when", "DateTimeWithLocalTZ", "DateTime", 12),
        ("tags", "Array", None, 13),
        ("note", "Text", "Text", 14),
        ("ok", "Boolean", "Boolean", 15),
    ]
    assert (manifest["fields"][0]["semantic_type"], manifest["fields"][2]["effective_type"]) == ("PK", "timestamptz")


async def test_pages_are_asked_for_in_the_order_of_the_key(
    client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    pages = [page(row(1), row(2)), reset(), page(row(3)), page()]
    with FaultyServer([answer(200, json.dumps(METADATA).encode()), *pages]) as server:
        fetched = await read(client, server, settings, tmp_path)
    assert [json.loads(line)["id"] for line in fetched.data_path.read_text().splitlines()] == [1, 2, 3]
    first, *queries = server.received
    assert (first.method, first.target) == ("GET", "/base/api/table/7/query_metadata")
    assert all(request.headers["x-api-key"] == "mb_k3y" for request in server.received)
    bodies: list[dict[str, Any]] = [json.loads(request.body) for request in queries if request.body]
    assert [body["query"]["page"]["page"] for body in bodies] == [1, 2, 3]
    assert bodies[0]["database"] == 3
    assert bodies[0]["query"]["order-by"] == [["asc", ["field", 10, None]]]
    assert [field[1] for field in bodies[0]["query"]["fields"]] == [10, 11, 12, 13, 14, 15]


async def test_table_without_a_key_is_ordered_by_all_that_sorts(
    client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    metadata = {**METADATA, "fields": [{**field, "semantic_type": None} for field in FIELDS]}
    with FaultyServer([answer(200, json.dumps(metadata).encode()), page()]) as server:
        fetched = await read(client, server, settings, tmp_path)
    assert fetched.bytes == 0
    ordered = [clause[1][1] for clause in json.loads(server.received[1].body)["query"]["order-by"]]
    assert ordered == [10, 11, 12, 14, 15]  # an array does not sort


async def test_pages_cut_by_a_lower_limit_are_an_error_and_not_a_short_table(
    client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    pages = [page(row(1)), page(row(3))]  # one row where two were asked for, and yet there are more
    with (
        FaultyServer([answer(200, json.dumps(METADATA).encode()), *pages]) as server,
        pytest.raises(JobFailed, match="MB_UNAGGREGATED_QUERY_ROW_LIMIT"),
    ):
        await read(client, server, settings, tmp_path)


@pytest.mark.parametrize(
    ("behaviours", "said"),
    [
        ([answer(403, b"mb_k3y")], "answered 403 to /api/table/7/query_metadata; check the API key"),
        ([answer(200, b"<html>login</html>")], "is not JSON"),
        ([answer(200, b"[" * 100_000)], "is not JSON"),
        ([answer(200, b"[]")], "unexpected form"),
        ([answer(200, b'{"db_id":1e9999999,"fields":[]}')], "unexpected form"),
        ([answer(200, b'{"db_id":1,"fields":[]}')], "no columns"),
        ([answer(200, json.dumps(METADATA).encode()), answer(202, b'{"status":"failed"}')], "could not run the query"),
        ([answer(200, json.dumps(METADATA).encode()), page("[1]")], "1 columns instead of 6"),
        ([answer(200, json.dumps(METADATA).encode()), page("1")], "rows in an unexpected form"),
        ([answer(200, json.dumps(METADATA).encode()), page(row(1), "[1]")], "rows in an unexpected form"),
        (
            [answer(200, json.dumps(METADATA).encode()), page(f"[1,1,null,null,{'[' * 400}{']' * 400},false]")],
            "unexpected",
        ),
        ([answer(200, json.dumps({**METADATA, "fields": [{"id": 1}]}).encode())], "unexpected form"),
    ],
)
async def test_errors_of_metabase_are_reported_without_the_key(
    behaviours: list[Behave], said: str, client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    with FaultyServer(behaviours) as server, pytest.raises(JobFailed) as caught:
        await read(client, server, settings, tmp_path)
    assert said in caught.value.message
    assert "mb_k3y" not in caught.value.message


async def test_manifest_that_is_not_written_whole_is_a_failure(
    client: ObjectClient, settings: Settings, tmp_path: Path
) -> None:
    """A disk that becomes full takes a part of a write, and says so at the next one only; so does a limit."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with FaultyServer([answer(200, json.dumps(METADATA).encode()), page(row(1)), page()]) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
        try:
            with pytest.raises(JobFailed, match="File too large"):
                await read(client, server, settings, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
