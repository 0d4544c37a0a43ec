"""More than pandas: transform() gets the kind that its annotation names, and every kind that it returns is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.transform_shim.jobs import Outcome, columns, request_for, table

Job = Callable[..., Outcome]
ORDERS = columns(
    id="BigInteger",
    name="Text",
    price="Decimal",
    day="Date",
    at="DateTime",
    tz="DateTimeWithLocalTZ",
    ok="Boolean",
    j="JSON",
)
ROWS = (
    '{"id":9007199254740993,"name":"a","price":12345678901234567.89,"day":"2024-01-15T00:00:00+05:30",'
    '"at":"2024-01-15T10:30:00-05:00","tz":"2024-01-15T10:30:00-05:00","ok":true,"j":"{}"}\n'
    '{"id":null,"name":null,"price":null,"day":null,"at":null,"tz":null,"ok":null,"j":null}\n'
)
TABLES = {"orders": table(ORDERS, ROWS)}
WRITTEN = [
    {
        "id": 9007199254740993, "name": "a", "price": 12345678901234567.89, "day": "2024-01-15",
        "at": "2024-01-15T10:30:00", "tz": "2024-01-15T15:30:00Z", "ok": True, "j": "{}",
    },
    dict.fromkeys(("id", "name", "price", "day", "at", "tz", "ok", "j")),
]  # fmt: skip
KINDS = {
    "pd.DataFrame": "pandas.core.frame.DataFrame",
    "pl.DataFrame": "polars.dataframe.frame.DataFrame",
    "pl.LazyFrame": "polars.lazyframe.frame.LazyFrame",
    "pa.Table": "pyarrow.lib.Table",
    "pa.RecordBatchReader": "pyarrow.lib.RecordBatchReader",
    "duckdb.DuckDBPyRelation": "DuckDBPyRelation",
}


def imports(annotation: str) -> str:
    package = {"pd": "pandas as pd", "pl": "polars as pl", "pa": "pyarrow as pa", "du": "duckdb"}[annotation[:2]]
    return f"import {package}\n"


@pytest.mark.parametrize("annotation", sorted(KINDS))
def test_annotated_frame_goes_through_with_same_values_and_types(job: Job, annotation: str) -> None:
    code = (
        imports(annotation)
        + f"def transform(orders: {annotation}):\n    print(type(orders).__name__)\n    return orders\n"
    )
    outcome = job(code, TABLES)
    assert outcome.result["code"] == "ok", outcome.stderr
    assert outcome.stdout.strip() == annotation.rpartition(".")[2]
    assert outcome.rows == WRITTEN
    is_exact = annotation != "pd.DataFrame"
    assert ("12345678901234567.89" in outcome.output) == is_exact
    assert ("rounded to float64" in outcome.stderr) != is_exact
    assert outcome.manifest["fields"] == ORDERS
    assert outcome.manifest["source_metadata"]["table_metadata"] == {"table_id": 7}
    assert outcome.result["tables"][0]["rows"] == 2


@pytest.mark.parametrize(
    "signature",
    [
        "from __future__ import annotations\nimport polars as pl\ndef transform(orders: pl.LazyFrame):",
        "import polars as pl\ndef transform(orders: 'pl.LazyFrame'):",
        "import polars as pl\nfrom typing import Optional\ndef transform(orders: Optional[pl.LazyFrame] = None):",
        "import polars as pl\ndef transform(orders: pl.LazyFrame | None = None):",
        "import polars as pl\nfrom typing import Optional\ndef transform(orders: Optional['pl.LazyFrame'] = None):",
        "import polars as pl\nfrom typing import NewType\nLazy = NewType('Lazy', pl.LazyFrame)\ndef transform(orders: Lazy):",
        "import polars as pl\nfrom typing import Annotated\ndef transform(orders: Annotated['pl.LazyFrame', 'x']):",
        "import polars as pl\nLazy = 'pl.LazyFrame'\ndef transform(orders: 'Lazy'):",
        "import polars as pl\nfrom typing_extensions import TypeAliasType\nLazy = TypeAliasType('Lazy', 'pl.LazyFrame')\n"
        "def transform(orders: Lazy):",
        "import polars as pl\nfrom typing import Annotated\ndef transform(orders: Annotated[pl.LazyFrame, 'x']):",
        "import polars as pl\ndef transform(**orders: pl.LazyFrame):\n    orders = orders['orders']",
    ],
)
def test_annotation_may_be_written_in_any_way(job: Job, signature: str) -> None:
    outcome = job(signature + "\n    print(type(orders).__name__)\n    return orders\n", TABLES)
    assert outcome.stdout == "LazyFrame\n", outcome.stderr


@pytest.mark.parametrize("annotation", ["", ": NoSuchThing", ": 'no such thing'", ": int", ": 'pl.DataFrame'"])
def test_other_annotations_mean_pandas(job: Job, annotation: str) -> None:
    head = "from __future__ import annotations\n" if "No" in annotation else ""
    outcome = job(
        f"{head}def transform(orders{annotation}):\n    print(type(orders).__name__)\n    return orders", TABLES
    )
    assert outcome.stdout == "DataFrame\n", outcome.stderr


def test_nothing_is_imported_that_the_script_did_not(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    # the job is a fork of this process, in which other tests may have imported DuckDB
    for name in [name for name in sys.modules if name.partition(".")[0] == "duckdb"]:
        monkeypatch.delitem(sys.modules, name)
    code = "import sys, pandas as pd\ndef transform(orders):\n    return pd.DataFrame({'v': [n in sys.modules for n in ('polars', 'duckdb')]})"
    assert job(code, TABLES).cells("v") == [False, False]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import polars as pl\ndef transform(orders: pl.LazyFrame):\n"
         "    return orders.filter(pl.col('ok')).group_by('id').agg(pl.len().alias('n'))", [{"id": 9007199254740993, "n": 1}]),
        ("import polars as pl\ndef transform(orders: pl.LazyFrame):\n    return orders.head(1).select('name')", [{"name": "a"}]),
        ("import polars as pl\ndef transform(orders: pl.LazyFrame):\n    return orders.select(pl.len())", [{"len": 2}]),
        ("import polars as pl\ndef transform(orders: pl.LazyFrame):\n"
         "    return orders.join(orders, on='id').select('id', 'name_right')", [{"id": 9007199254740993, "name_right": "a"}]),
        ("import duckdb\ndef transform(orders: duckdb.DuckDBPyRelation):\n"
         "    return duckdb.sql('select count(*) as n, max(id) as id from orders')", [{"n": 2, "id": 9007199254740993}]),
        ("import duckdb\ndef transform(orders: duckdb.DuckDBPyRelation):\n"
         "    assert orders.count('*').fetchall() == [(2,)]\n    return orders.filter('ok').project('name')", [{"name": "a"}]),
        ("import pyarrow as pa\ndef transform(orders: pa.Table):\n    return orders.select(['id']).slice(0, 1)",
         [{"id": 9007199254740993}]),
    ],
)  # fmt: skip
def test_queries_run_on_each_frame_kind(job: Job, code: str, expected: list[Mapping[str, Any]]) -> None:
    outcome = job(code, TABLES)
    assert outcome.result["code"] == "ok", outcome.stderr
    assert outcome.rows == expected
    assert outcome.result["tables"][0]["rows"] in (
        1,
        2,
    )  # a table gone through twice counts once, as far as it was read
    if "id" in expected[0]:
        assert outcome.types["id"] == "BigInteger"


@pytest.mark.parametrize("annotation", ["pl.LazyFrame", "pa.RecordBatchReader", "duckdb.DuckDBPyRelation"])
def test_broken_file_is_named_when_a_lazy_frame_reads_it(job: Job, annotation: str) -> None:
    code = imports(annotation) + f"def transform(orders: {annotation}):\n    return orders\n"
    tables = {"orders": table(columns(n="Text"), '{"n":"x"}\n' * 1000 + '{"n":"y\n')}
    outcome = job(code, tables)
    assert outcome.result["outcome"] == "error"
    assert "Table 'orders', line 1001, column 'n': the line is cut short" in outcome.stderr
    assert outcome.result["code"] == "input_invalid"


@pytest.mark.parametrize(
    "annotation", ["pl.LazyFrame", "pa.RecordBatchReader", "duckdb.DuckDBPyRelation", "pl.DataFrame"]
)
def test_table_without_rows_has_its_columns_in_every_form(job: Job, annotation: str) -> None:
    code = imports(annotation) + f"def transform(orders: {annotation}):\n    return orders\n"
    outcome = job(code, {"orders": table(ORDERS, "")})
    assert outcome.result["code"] == "ok", outcome.stderr
    assert outcome.output == ""
    assert outcome.manifest["fields"] == ORDERS


def test_tables_of_several_forms_can_be_mixed(job: Job) -> None:
    code = (
        "import pandas as pd, polars as pl\ndef transform(orders: pl.DataFrame, people):\n"
        "    return orders.select('id').join(pl.from_pandas(people), on='id')"
    )
    tables = {
        **TABLES,
        "people": table(columns(id="BigInteger", who="PostgresEnum"), '{"id":9007199254740993,"who":"x"}\n'),
    }
    outcome = job(code, tables)
    assert outcome.result["code"] == "ok", outcome.stderr
    assert outcome.types == {"id": "BigInteger", "who": "PostgresEnum"}


@pytest.mark.parametrize("value", ["pl.Series([1])", "pl.DataFrame", "pl.col('a')", "pl.LazyFrame"])
def test_other_polars_values_are_refused(job: Job, value: str) -> None:
    assert job(f"import polars as pl\ndef transform():\n    return {value}").result["code"] == "invalid_return"


@pytest.mark.parametrize(
    ("annotation", "body"),
    [
        ("pl.LazyFrame", "t.filter(pl.col('n') % 2 == 0).group_by('k').agg(pl.col('n').sum()).sort('k')"),
        pytest.param(
            "duckdb.DuckDBPyRelation",
            "t.filter('n % 2 = 0').aggregate('k, sum(n)::bigint as n').order('k')",
            marks=pytest.mark.soak,
        ),
        # these write the 300 MB again
        pytest.param("pl.LazyFrame", "t.filter(pl.col('n') >= 0)", marks=pytest.mark.soak),
        pytest.param("pa.RecordBatchReader", "t", marks=pytest.mark.soak),
    ],
)
def test_table_larger_than_memory_goes_through(tmp_path: Path, annotation: str, body: str) -> None:
    """300 MB of lines; a process that keeps them all needs 500 MB, one that lets them through less than 400."""
    line = '{"k":"%s","n":%d,"pad":"%s"}\n'
    block = "".join(line % ("abc"[n % 3], n, "x" * 960) for n in range(1000)).encode()
    code = imports(annotation) + f"def transform(t: {annotation}):\n    return {body}\n"
    request = request_for(tmp_path / "j", code, {"t": table(columns(k="Text", n="Integer", pad="Text"), block)})
    with Path(request["tables"][0]["data_path"]).open("ab") as file:
        for _ in range(299):
            file.write(block)
    # VmHWM: ru_maxrss counts what the parent had before the exec
    program = (
        "import sys, transform_shim.job.run; transform_shim.job.run.run_job(sys.stdin.read())\n"
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        timeout=60,
        check=True,
    )
    outcome = Outcome(tmp_path / "j", 0)
    assert outcome.result["code"] == "ok"
    assert outcome.result["tables"][0]["rows"] == 300_000
    assert int(done.stdout) < 430 << 10
    if "sum" in body:
        assert outcome.cells("k") == ["a", "b", "c"]
        assert sum(map(int, outcome.cells("n"))) == 300 * sum(range(0, 1000, 2))
    else:
        assert outcome.result["rows"] == 300_000
    shutil.rmtree(tmp_path)


def test_reader_of_a_table_that_was_read_before_is_refused(job: Job) -> None:
    """It would give an empty table, or one without its first rows."""
    code = "import pyarrow as pa\ndef transform(orders: pa.RecordBatchReader):\n    {}\n    return orders"
    outcome = job(code.format("print(sum(batch.num_rows for batch in orders))"), TABLES)
    assert outcome.result["code"] == "invalid_return"
    assert "the reader of table 'orders' after 2 rows of it had been read" in outcome.result["message"]
    assert outcome.stderr == (
        "ERROR: Transform function returned the reader of table 'orders' after 2 rows of it had been read\n"
        "HINT: a reader gives its rows once: annotate the parameter as pa.Table to use orders several times\n"
    )
    assert job(code.format("print(orders.schema.names)"), TABLES).rows == WRITTEN


@pytest.mark.parametrize(("before", "rows", "is_warned"), [("", 1, False), ("reader.read_all()", 0, True)])
def test_other_reader_without_rows_is_noted(job: Job, before: str, rows: int, is_warned: bool) -> None:
    code = f"import pyarrow as pa\ndef transform():\n    reader = pa.table({{'a': [1]}}).to_reader()\n    {before}\n    return reader"
    outcome = job(code)
    assert outcome.result["rows"] == rows
    assert ("WARNING: the returned reader gave no rows" in outcome.stderr) is is_warned


def test_reader_without_rows_of_empty_tables_is_not_noted(job: Job) -> None:
    code = "import pyarrow as pa\ndef transform(orders: pa.RecordBatchReader):\n    return orders"
    outcome = job(code, {"orders": table(ORDERS, "")})
    assert (outcome.rows, outcome.stderr) == ([], "")
