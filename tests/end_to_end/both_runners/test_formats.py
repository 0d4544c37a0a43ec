"""Tables in every format through a gateway and a store, as the caller of a job sees it."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from tests.support.gateway_process import Answer, GatewayProcess
from tests.support.s3 import S3Server

FRAME = pd.DataFrame({"id": [1, 2**40, 3], "who": ["a", 'b,"\n', "ä"], "paid": [1.5, None, 0.1]})
FIELDS = [
    {"name": "id", "base_type": "BigInteger"},
    {"name": "who", "base_type": "Text"},
    {"name": "paid", "base_type": "Float"},
]
MANIFEST = {"schema_version": 1, "data_version": 1, "fields": FIELDS, "table_metadata": {"table_id": 1}}
IDENTITY = "def transform(orders):\n    return orders\n"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


def write_arrow(frame: pd.DataFrame, file: io.BytesIO) -> None:
    pyarrow.feather.write_feather(frame, file, compression="zstd")


def write_arrow_stream(frame: pd.DataFrame, file: io.BytesIO) -> None:
    table = pa.Table.from_pandas(frame)
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[pd.DataFrame, io.BytesIO], Any]] = {
    "jsonl": lambda frame, file: frame.to_json(file, orient="records", lines=True),
    "csv": lambda frame, file: frame.to_csv(file, index=False),
    "parquet": lambda frame, file: frame.to_parquet(file, compression="zstd"),
    "arrow": write_arrow,
    "arrow stream": write_arrow_stream,
}
READERS: dict[str, Callable[[bytes], pd.DataFrame]] = {
    "jsonl": lambda data: pd.read_json(io.BytesIO(data), orient="records", lines=True),
    "csv": lambda data: pd.read_csv(io.BytesIO(data)),
    "parquet": lambda data: pd.read_parquet(io.BytesIO(data)),
    "arrow": lambda data: pyarrow.feather.read_feather(io.BytesIO(data)),
}


def encoded(written_as: str, frame: pd.DataFrame = FRAME) -> bytes:
    file = io.BytesIO()
    WRITERS[written_as](frame, file)
    return file.getvalue()


def run(
    gateway: GatewayProcess, s3: S3Server, data: bytes, manifest: Any = MANIFEST, encoding: str = "", **more: Any
) -> tuple[Answer, Callable[[str], bytes | None]]:
    """Put the table, run the job, return the answer and what reads its objects."""
    prefix = s3.new_prefix()
    s3.put(f"{prefix}/data", data, **({"ContentEncoding": encoding} if encoding else {}))
    s3.put(f"{prefix}/manifest", json.dumps(manifest).encode())
    body = {
        "code": IDENTITY,
        "request_id": prefix,
        "table_mapping": {"orders": s3.get_url(f"{prefix}/data")},
        "manifest_mapping": {"orders": s3.get_url(f"{prefix}/manifest")},
        **{f"{name}_url": s3.put_url(f"{prefix}/{name}") for name in ("output", "output_manifest", "events")},
    }
    answer = gateway.request("POST", "/v1/execute", body | more)
    return answer, lambda name: s3.get(f"{prefix}/{name}")


@pytest.mark.parametrize("written_as", sorted(WRITERS))
@pytest.mark.parametrize("named_by", ["manifest", "request"])
def test_table_goes_in_and_comes_out(
    running_gateway: GatewayProcess, s3: S3Server, written_as: str, named_by: str
) -> None:
    data_format = written_as.split()[0]
    manifest = MANIFEST | ({"data_format": data_format} if named_by == "manifest" else {})
    more = {"data_format": {"orders": data_format}} if named_by == "request" else {}
    answer, got = run(running_gateway, s3, encoded(written_as), manifest, output_format=data_format, **more)
    assert answer.status == 200, answer.raw
    output = READERS[data_format](got("output") or b"")
    pd.testing.assert_frame_equal(output, FRAME, check_dtype=False)
    made = json.loads(got("output_manifest") or b"")
    assert made["data_format"] == data_format
    assert [(field["name"], field["base_type"]) for field in made["fields"]] == [
        ("id", "BigInteger"),
        ("who", "Text"),
        ("paid", "Float"),
    ]
    if data_format == "parquet":
        columns = pyarrow.parquet.ParquetFile(io.BytesIO(got("output") or b"")).metadata.row_group(0)
        assert {columns.column(i).compression for i in range(3)} == {"ZSTD"}


@pytest.mark.parametrize("written_as", ["jsonl", "csv", "arrow stream"])
@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_packed_table_is_unpacked_on_the_way(
    running_gateway: GatewayProcess, s3: S3Server, written_as: str, encoding: str
) -> None:
    plain, data_format = encoded(written_as), written_as.split()[0]
    packed = gzip.compress(plain) if encoding == "gzip" else pa.compress(plain, codec="zstd", asbytes=True)
    answer, got = run(running_gateway, s3, packed, encoding=encoding, data_format={"orders": data_format})
    assert answer.status == 200, answer.raw
    pd.testing.assert_frame_equal(READERS["jsonl"](got("output") or b""), FRAME, check_dtype=False)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"id":1,"who":"a","paid":1.5}\n{"id":2,"who":"b","pai', ["line 2", "cut short"]),
        (b'{"id":1,"who":"a","paid":1}\n{"id":2,"who":"\xff","paid":1}\n', ["line 2", "'who'", "UTF-8"]),
        (b'{"id":1,"who":"a","paid":1}\n{"id":1.5,"who":"b","paid":1}\n', ["line 2", "'id'", "whole number", "1.5"]),
        (b'{"id":1,"who":"a","paid":"x"}\n', ["line 1", "'paid'", "a number"]),
        ('{"id":1}\n'.encode("utf-16"), ["line 1", "UTF-16"]),
    ],
)
def test_damaged_table_is_named_with_line_and_column(
    running_gateway: GatewayProcess, s3: S3Server, data: bytes, said: list[str]
) -> None:
    answer, got = run(running_gateway, s3, data)
    assert (answer.status, answer.body["code"]) == (500, "input_invalid")
    assert all(part in answer.body["error"] for part in ["'orders'", *said]), answer.body["error"]
    assert answer.body["error"] in (got("events") or b"").decode().replace('\\"', '"')


def test_table_of_no_bytes_has_its_columns_and_makes_an_empty_output(
    running_gateway: GatewayProcess, s3: S3Server
) -> None:
    code = "def transform(orders):\n    print(dict(orders.dtypes.astype(str)))\n    return orders\n"
    answer, got = run(running_gateway, s3, b"", code=code)
    assert answer.status == 200, answer.raw
    assert "'id': 'int64'" in (got("events") or b"").decode()
    assert got("output") == b""
