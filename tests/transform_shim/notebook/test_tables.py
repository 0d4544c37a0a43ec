"""Tables come into a notebook from files, URLs, Metabase and its own frames, and look as transform() would get them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support.notebook_kernel import NotebookKernel
from tests.transform_shim.notebook.fake_metabase import KEY, ROWS


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(notebook: NotebookKernel) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(notebook.directory))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_file_becomes_the_frame_that_transform_gets(notebook: NotebookKernel) -> None:
    assert (
        notebook.run("%table orders orders.csv").stdout
        == 'orders: 3 rows, 2 columns (orders.csv); look at it: tables["orders"]\n'
    )
    assert (
        notebook.value("tables.orders.to_dict('list')")
        == "{'status': ['paid', 'open', 'paid'], 'amount': [10.5, 3.0, 4.5]}"
    )
    assert (
        notebook.value("tables['orders'].equals(tables.orders), 'orders' in tables, list(tables)[0]")
        == "(True, True, 'orders')"
    )


def test_state_persists_and_a_frame_that_is_changed_changes_no_other(notebook: NotebookKernel) -> None:
    notebook.run("%table orders orders.csv")
    notebook.run("mine = tables.orders\nmine['amount'] = 0\nmine.drop(columns='status', inplace=True)")
    assert notebook.value("len(mine.columns), list(tables.orders.columns)") == "(1, ['status', 'amount'])"
    notebook.run("mine = tables.orders\nmine.loc[0, 'status'] = 'lost'\nmine.iloc[1, 1] = -1.0\nmine.attrs['mine'] = 1")
    assert notebook.value("mine.iloc[:2].values.tolist()") == "[['lost', 10.5], ['open', -1.0]]"
    assert notebook.value("tables.orders.iloc[:2].values.tolist()") == "[['paid', 10.5], ['open', 3.0]]"
    assert notebook.value("'mine' in tables.orders.attrs") == "False"


def test_tables_survive_a_reset_of_the_names(notebook: NotebookKernel) -> None:
    notebook.run("%table orders orders.csv")
    notebook.run("x = 1\n%reset -f")
    assert notebook.value("'x' in globals(), len(tables.orders)") == "(False, 3)"
    notebook.run("tables = 'mine'")
    assert notebook.value("tables") == "'mine'"
    notebook.run("%reset -f")
    assert notebook.value("list(tables)[0]") == "'orders'"


def test_duckdb_that_a_cell_has_imported_reads_tables(notebook: NotebookKernel) -> None:
    """It then knows that it is in a notebook, where its bar of progress needs ipywidgets."""
    notebook.run("%table orders orders.csv\nimport duckdb")
    assert notebook.value("len(tables.read('orders', 'duckdb').fetchall())") == "3"
    cell = "%%transform --here\nimport duckdb\ndef transform(orders: duckdb.DuckDBPyRelation):\n    return orders"
    assert "3 rows, 2 columns" in notebook.run(cell).text


def test_manifest_decides_the_types(notebook: NotebookKernel) -> None:
    notebook.run("%table days days.jsonl --manifest days.manifest.json")
    assert notebook.value("tables.info('days').fields") == "(('day', 'Date'), ('n', 'BigInteger'))"
    assert notebook.value("str(tables.days.dtypes['day'])").startswith("'datetime64")
    assert notebook.value("tables.days.attrs['source_metadata']['fields'][1]['base_type']") == "'BigInteger'"


def test_packed_files_and_equals_sign_are_understood(notebook: NotebookKernel) -> None:
    assert notebook.run("%table packed = packed.csv.gz").stdout.startswith("packed: 3 rows")
    assert notebook.value("tables.packed.amount.sum()") in ("18.0", "np.float64(18.0)", "Decimal('18.0')")


def test_json_arrays_are_rows(notebook: NotebookKernel) -> None:
    assert notebook.run("%table rows rows.json").stdout.startswith("rows: 2 rows, 3 columns (rows.json)")
    assert notebook.value("tables.rows.id.tolist(), tables.rows.text[1]") == "([12345678901234567890, 2], 'a\\nb')"
    assert notebook.run("%table packed packed.json.gz").stdout.startswith("packed: 1 row, ")


def test_first_sheet_of_a_workbook_is_a_table(notebook: NotebookKernel) -> None:
    assert notebook.run("%table book book.xlsx").stdout.startswith("book: 3 rows, 4 columns (book.xlsx)")
    assert (
        notebook.value("list(tables.book), tables.book.n.tolist()") == "(['n', 'day', 'mixed', '2024'], [1, <NA>, 3])"
    )
    assert notebook.value("tables.book.day.dt.day.tolist(), tables.book['mixed'][1]") == "([15.0, nan, 17.0], '2')"


def test_parquet_is_a_table(notebook: NotebookKernel) -> None:
    assert notebook.run("%table fast orders.parquet").stdout.startswith("fast: 3 rows, 2 columns (orders.parquet)")


def test_url_with_its_manifest_and_without_its_signature(notebook: NotebookKernel, site: str) -> None:
    cell = notebook.run(f"%table away '{site}/days.jsonl?X-Amz-Signature=abc' --manifest {site}/days.manifest.json")
    assert cell.stdout == f'away: 2 rows, 2 columns ({site}/days.jsonl); look at it: tables["away"]\n'
    assert notebook.value("tables.away.n.tolist()") == "[3000000000, 1]"
    gone = notebook.run(f"%table gone {site}/nothing.csv?X-Amz-Signature=abc")
    assert gone.stderr.startswith("UsageError: Table 'gone' could not be fetched: the storage answered 404")
    assert "abc" not in gone.stderr


class _Slow(_Quiet):
    def do_GET(self) -> None:
        half = b"x\n" + b"1\n" * 50_000
        self.send_response(200)
        self.send_header("Content-Length", str(2 * len(half)))
        self.end_headers()
        self.wfile.write(half)
        self.wfile.flush()
        time.sleep(1)  # as a slow storage does; the line comes after 0.7 s
        self.wfile.write(half)


@pytest.mark.parametrize("asked", ["%table slow {}", "from transform_shim import table; print(table('slow', '{}'))"])
def test_a_slow_download_shows_how_far_it_is(notebook: NotebookKernel, asked: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Slow) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        cell = notebook.run(asked.format(f"http://127.0.0.1:{server.server_port}/slow.csv"))
        server.shutdown()
        thread.join()
    assert cell.stdout.startswith("slow: 100,001 rows")
    assert cell.text.startswith("slow: "), cell
    assert cell.text.endswith("kB …")


@pytest.mark.parametrize("which", ["7", "orders", "PUBLIC.orders"])
def test_metabase_table_by_id_or_name(notebook: NotebookKernel, which: str) -> None:
    cell = notebook.run(f"%table live metabase:{which}")
    assert cell.stdout == f'live: {ROWS:,} rows, 2 columns (metabase:{which}); look at it: tables["live"]\n', cell
    assert notebook.value("tables.live.id.nunique(), str(tables.live.placed.dt.tz)") == f"({ROWS}, 'UTC')"


def test_metabase_names_are_checked_in_plain_words(notebook: NotebookKernel) -> None:
    assert "no table named 'order'; did you mean orders?" in notebook.run("%table x metabase:order").stderr
    ambiguous = notebook.run("%table x metabase:people").stderr
    assert "2 tables named 'people'" in ambiguous
    assert "a.people of database 3 (metabase:8)" in ambiguous


def test_kernel_never_sees_the_keys(notebook: NotebookKernel) -> None:
    notebook.run("%table live metabase:7")
    notebook.run("import os, subprocess\nchild = subprocess.run(['env'], capture_output=True, text=True).stdout")
    looked_at = notebook.value("dict(os.environ), child")
    assert "TRANSFORM_COMPANION_FD" in looked_at
    assert not any(word in looked_at for word in (KEY, "METABASE", "AUTH_TOKEN", "GATEWAY_URL"))


@pytest.mark.parametrize(
    "make",
    [
        "import pandas as pd; made = pd.DataFrame({'n': [1, 2], 's': ['x', None]}, index=[5, 6])",
        "import polars as pl; made = pl.DataFrame({'n': [1, 2], 's': ['x', None]})",
        "import pyarrow as pa; made = pa.table({'n': [1, 2], 's': ['x', None]})",
    ],
    ids=["pandas", "polars", "arrow"],
)
def test_a_frame_of_the_notebook_becomes_a_table(notebook: NotebookKernel, make: str) -> None:
    notebook.run(make)
    assert (
        notebook.run("%table made @made").stdout
        == 'made: 2 rows, 2 columns (the variable made); look at it: tables["made"]\n'
    )
    assert notebook.value("tables.info('made').fields") == "(('n', 'Integer'), ('s', 'Text'))"
    assert notebook.value("tables.read('made', form='polars')['n'].to_list()") == "[1, 2]"


def test_tables_lists_and_drops_tables(notebook: NotebookKernel) -> None:
    notebook.run("%table orders orders.csv")
    (shown,) = notebook.run("%tables").shown
    assert "orders: 3 rows, 40 bytes, from orders.csv" in shown["text/plain"]
    assert "<td style='text-align: left'>orders</td>" in shown["text/html"]
    assert notebook.run("%table --drop orders").status == "ok"
    assert "no table 'orders'" in notebook.run("tables['orders']").error
    notebook.run("%tables --clear")
    assert notebook.run("%tables").stdout == "no tables are loaded; %table NAME SOURCE loads one\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("orders gone.csv", "gone.csv: no such file in "),
        ("orders ftp://x/y.csv", "sources are a file, a URL (http, https), metabase:ID, metabase:NAME, or @variable"),
        ("orders @nothing", "there is no variable 'nothing' in this notebook"),
        ("orders @said", "a table is made of a data frame (pandas, Polars, Arrow, DuckDB), not of 'str'"),
        ("or-ders orders.csv", "'or-ders' cannot be a table's name"),
        ("orders", "expected %table NAME SOURCE"),
        ("orders a b", "expected %table NAME SOURCE"),
        ("orders ''", "expected %table NAME SOURCE"),
        ("orders 'a b.csv", "orders 'a b.csv: no closing quotation"),
        ("orders orders.csv --format xlsx", "invalid choice: 'xlsx'"),
        ("x broken.jsonl", "Table 'x', line 2"),
        ("x values.json", "values.json: expected a JSON array of objects, one for each row"),
        ("x torn.xlsx", "torn.xlsx: not a workbook that can be read: "),
        ("--drop nothing", "there is no table 'nothing'"),
    ],
)
def test_usage_errors_are_one_line(notebook: NotebookKernel, line: str, said: str) -> None:
    notebook.run("said = 'text'")
    cell = notebook.run(f"%table {line}")
    assert cell.status == "error", "a run of all cells stops here"
    assert cell.stderr.startswith("UsageError: ")
    assert said in cell.stderr
    assert "Traceback" not in cell.stderr + cell.error
