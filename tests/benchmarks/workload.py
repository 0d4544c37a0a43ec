"""The jobs: requests as Metabase sends them, their objects in a real S3 server, and one timed call."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tests.support import nyc_flights
from tests.support.s3 import S3Server

SMALL_CODE = """
import pandas as pd


def transform(orders):
    return orders.groupby("status", as_index=False)["amount"].sum()
"""

IDENTITY_CODE = """
def transform(flights):
    return flights
"""

GROUP_BY_CODE = """
def transform(flights):
    carriers = flights.groupby("carrier", as_index=False)
    return carriers.agg(flights=("flight", "size"), delay=("arr_delay", "mean"), miles=("distance", "sum"))
"""

POLARS_CODE = """
import polars as pl


def transform(flights: pl.LazyFrame) -> pl.LazyFrame:
    carriers = flights.group_by("carrier")
    return carriers.agg(flights=pl.len(), delay=pl.col("arr_delay").mean(), miles=pl.col("distance").sum())
"""

DUCKDB_CODE = """
import duckdb


def transform(flights: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    return flights.aggregate("carrier, count(*) as flights, avg(arr_delay) as delay, sum(distance) as miles")
"""

ANSWER_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Table:
    """An input table that lies in the store."""

    alias: str
    rows: int
    data_key: str
    manifest_key: str
    data_bytes: int
    data_format: str = "jsonl"


@dataclass(frozen=True, slots=True)
class Answer:
    """One call as its caller saw it; ``seconds`` is from before the connection to the end of the body."""

    seconds: float
    body: dict[str, Any]
    output_key: str


class Jobs:
    """Makes requests over one store and calls servers with them.

    Parameters
    ----------
    store : S3Server
    prefix : str
        Below which all objects of this run lie.
    """

    def __init__(self, store: S3Server, prefix: str = "bench") -> None:
        self.store = store
        self._prefix = prefix
        self._numbers = itertools.count(1)

    def table(self, alias: str, frame: pd.DataFrame, data_format: str = "jsonl") -> Table:
        """Upload `frame` as Metabase would (JSON lines with nulls, and a manifest), or in another format."""
        data_key, manifest_key = (f"{self._prefix}/{alias}.{ending}" for ending in (data_format, "manifest.json"))
        body = encoded(frame, data_format)
        self.store.put(data_key, body)
        self.store.put(manifest_key, json.dumps(manifest(frame) | {"data_format": data_format}).encode())
        return Table(alias, len(frame), data_key, manifest_key, len(body), data_format)

    def repeated(self, alias: str, frame: pd.DataFrame, rows: int) -> Table:
        """Upload the rows of `frame`, over and over, until there are `rows`."""
        lines = encoded(frame, "jsonl").splitlines(keepends=True)
        times, rest = divmod(rows, len(lines))
        body = b"".join(lines) * times + b"".join(lines[:rest])
        data_key, manifest_key = f"{self._prefix}/{alias}-{rows}.jsonl", f"{self._prefix}/{alias}-{rows}.manifest.json"
        self.store.put(data_key, body)
        self.store.put(manifest_key, json.dumps(manifest(frame)).encode())
        return Table(alias, rows, data_key, manifest_key, len(body))

    def request(self, code: str, tables: list[Table], timeout_seconds: int = 120) -> tuple[dict[str, Any], str]:
        """Return a request body and the key that its output will have."""
        number = next(self._numbers)
        keys = {
            name: f"{self._prefix}/{number}/{name}" for name in ("output.csv", "output-manifest.json", "events.jsonl")
        }
        put = {name: self.store.put_url(key) for name, key in keys.items()}
        body = {
            "code": code,
            "library": {},
            "timeout": timeout_seconds,
            "request_id": number,
            "output_url": put["output.csv"],
            "output_manifest_url": put["output-manifest.json"],
            "events_url": put["events.jsonl"],
            "table_mapping": {t.alias: self.store.get_url(t.data_key) for t in tables},
            "manifest_mapping": {t.alias: self.store.get_url(t.manifest_key) for t in tables},
        }
        if any(table.data_format != "jsonl" for table in tables):
            body["data_format"] = {table.alias: table.data_format for table in tables}
            body["output_format"] = tables[0].data_format
        return body, keys["output.csv"]

    def call(self, url: str, code: str, tables: list[Table]) -> Answer:
        """Run one job and return what came back.

        Raises
        ------
        RuntimeError
            The job did not succeed: a benchmark of failures would be a fast one.
        """
        body, output_key = self.request(code, tables)
        began = time.perf_counter()
        status, answer = post(f"{url}/v1/execute", body)
        seconds = time.perf_counter() - began
        if status != 200:
            raise RuntimeError(f"the job failed with {status}: {answer}")
        return Answer(seconds, answer, output_key)

    def call_inline(self, url: str, code: str, table: Table) -> Answer:
        """Run one job whose table comes with the request and whose result is in the answer, as `call` does."""
        request = {"code": code, "request_id": f"inline-{next(self._numbers)}", "inline": True}
        parts = {
            'name="request"': json.dumps(request).encode(),
            f'name="table:{table.alias}"; filename="{table.alias}.{table.data_format}"': self.store.get(table.data_key),
            f'name="manifest:{table.alias}"; filename="manifest.json"': self.store.get(table.manifest_key),
        }
        boundary = b"of-the-benchmark"
        heads = (
            (f"Content-Disposition: form-data; {name}".encode(), content or b"") for name, content in parts.items()
        )
        body = b"".join(b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, *part) for part in heads) + b"--%b--\r\n" % boundary
        began = time.perf_counter()
        status, answer = _post(f"{url}/v1/execute", body, f"multipart/form-data; boundary={boundary.decode()}")
        seconds = time.perf_counter() - began
        if status != 200 or "output" not in answer:
            raise RuntimeError(f"the job failed with {status}: {answer}")
        return Answer(seconds, answer, "")

    def move(self, *tables: Table, outputs: Sequence[bytes]) -> float:
        """Return the seconds of fetching tables with their manifests to files and of uploading outputs, and no more.

        Each over a connection of its own, one after the other.
        """
        urls = [self.store.get_url(key) for table in tables for key in (table.data_key, table.manifest_key)]
        puts = [self.store.put_url(f"{self._prefix}/alone/{number}") for number in range(len(outputs))]
        began = time.perf_counter()
        for url in urls:
            download(url)
        for url, output in zip(puts, outputs, strict=True):
            upload(url, output)
        return time.perf_counter() - began

    def rows(self, answer: Answer) -> list[dict[str, Any]]:
        """Return the rows of the uploaded output."""
        output = self.store.get(answer.output_key) or b""
        return [json.loads(line) for line in output.splitlines() if line]


def post(url: str, body: dict[str, Any], answer_seconds: float = ANSWER_SECONDS) -> tuple[int, dict[str, Any]]:
    """Post JSON over a connection of its own, as Metabase does."""
    return _post(url, json.dumps(body).encode(), "application/json", answer_seconds)


def _post(
    url: str, body: bytes, content_type: str, answer_seconds: float = ANSWER_SECONDS
) -> tuple[int, dict[str, Any]]:
    target = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=answer_seconds)
    try:
        connection.request("POST", target.path, body, {"Content-Type": content_type})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def upload(url: str, body: bytes) -> None:
    """PUT one object over a connection of its own."""
    target = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("PUT", f"{target.path}?{target.query}", body)
        answer = connection.getresponse()
        answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"upload answered {answer.status}")
    finally:
        connection.close()


def download(url: str) -> None:
    """GET one object over a connection of its own, to a file."""
    target = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", f"{target.path}?{target.query}")
        answer = connection.getresponse()
        with tempfile.TemporaryFile() as file:
            shutil.copyfileobj(answer, file, 1 << 18)
        if answer.status >= 300:
            raise RuntimeError(f"download answered {answer.status}")
    finally:
        connection.close()


def encoded(frame: pd.DataFrame, data_format: str) -> bytes:
    """Return a table's bytes as Metabase sends them, or in another format."""
    buffer = io.BytesIO()
    match data_format:
        case "jsonl":
            frame.to_json(buffer, orient="records", lines=True)
        case "csv":
            frame.to_csv(buffer, index=False)
        case "parquet":
            frame.to_parquet(buffer, index=False)
        case "arrow":
            frame.to_feather(buffer, compression="uncompressed")
        case _:
            raise ValueError(f"no such format: {data_format}")
    return buffer.getvalue()


def manifest(frame: pd.DataFrame) -> dict[str, Any]:
    """Describe a frame as Metabase describes a table."""
    kinds = {"i": "Integer", "f": "Float", "b": "Boolean", "M": "DateTime"}
    database_types = {"Integer": "int8", "Float": "float8", "Boolean": "bool", "DateTime": "timestamp"}
    fields = []
    for number, name in enumerate(frame.columns, 1):
        base_type = kinds.get(frame[name].dtype.kind, "Text")
        types = dict.fromkeys(("base_type", "effective_type"), base_type)
        root = "Number" if base_type in ("Integer", "Float") else base_type
        fields.append(
            {
                "name": name,
                **types,
                "root_type": root,
                "database_type": database_types.get(base_type, "text"),
                "semantic_type": None,
                "field_id": number,
            }
        )
    head = {"schema_version": 1, "data_format": "jsonl", "data_version": 1}
    return {**head, "table_metadata": {"table_id": 1}, "fields": fields}


def small_orders(rows: int = 100) -> pd.DataFrame:
    """Return a table as a preview has it."""
    states = ["paid", "open", "lost"]
    return pd.DataFrame(
        {
            "id": range(rows),
            "status": [states[i % 3] for i in range(rows)],
            "amount": [i * 1.25 for i in range(rows)],
        }
    )


def flights() -> pd.DataFrame:
    """Return the flights that left New York in 2013: 336,776 rows of 19 columns, integers with nulls too."""
    frame = nyc_flights.read("flights")
    whole = [n for n in frame.columns if frame[n].dtype.kind == "f" and (frame[n].dropna() % 1 == 0).all()]
    return frame.astype(dict.fromkeys(whole, "Int64"))
