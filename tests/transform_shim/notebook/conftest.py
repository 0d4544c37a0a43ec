"""One notebook for the tests of this folder that leave it usable."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.support.gateway_process import GatewayProcess
from tests.support.notebook_kernel import NotebookKernel
from tests.transform_shim.notebook.fake_metabase import KEY, FakeMetabase

ORDERS = "status,amount\npaid,10.5\nopen,3\npaid,4.5\n"


def write_files(directory: Path) -> None:
    """Write the tables that the notebook loads."""
    (directory / "orders.csv").write_text(ORDERS)
    (directory / "packed.csv.gz").write_bytes(gzip.compress(ORDERS.encode()))
    (directory / "rows.json").write_text('[{"id": 12345678901234567890, "x": 1.50},\n  {"id": 2, "text": "a\\nb"}]')
    (directory / "packed.json.gz").write_bytes(gzip.compress(b' [ {"id": 1} ]'))
    (directory / "values.json").write_text("[1, 2]")
    pd.read_csv(directory / "orders.csv").to_parquet(directory / "orders.parquet")
    days = pd.to_datetime(["2024-01-15", None, "2024-01-17"])
    frame = pd.DataFrame(
        {"n": pd.array([1, None, 3], "Int64"), "day": days, "mixed": ["x", 2, None], 2024: [1.5, 2, 3]}
    )
    frame.to_excel(directory / "book.xlsx", index=False)
    (directory / "torn.xlsx").write_bytes((directory / "book.xlsx").read_bytes()[:500])
    (directory / "days.jsonl").write_text('{"day": "2024-01-15", "n": 3000000000}\n{"day": null, "n": 1}\n')
    fields = [{"name": "day", "base_type": "Date"}, {"name": "n", "base_type": "BigInteger"}]
    (directory / "days.manifest.json").write_text(json.dumps({"fields": fields}))
    (directory / "broken.jsonl").write_text('{"day": 1}\n{"day": \n')


@pytest.fixture(scope="package")
def notebook(running_gateway: GatewayProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookKernel]:
    directory = tmp_path_factory.mktemp("notebook")
    write_files(directory)
    with (
        FakeMetabase() as metabase_url,
        NotebookKernel(
            directory,
            {
                "METABASE_URL": metabase_url,
                "METABASE_API_KEY": KEY,
                "TRANSFORM_GATEWAY_URL": running_gateway.url,
                "AUTH_TOKEN": running_gateway.token,
            },
            gateway=running_gateway,
        ) as kernel,
    ):
        yield kernel
