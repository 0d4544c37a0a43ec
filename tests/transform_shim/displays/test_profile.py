"""The profile of a result, which the page, notebooks and the command line show."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from gateway.core.displays import MOST_PROFILE_COLUMNS, DisplayedProfile
from gateway.local.output.job_displays import parse_displays
from transform_shim.core.progress import Progress
from transform_shim.core.table_file import TableFile
from transform_shim.displays import profile as module
from transform_shim.displays.pictures import profile_html, waterfall_html
from transform_shim.displays.profile import profile, record_profile
from transform_shim.displays.recorder import Recorder
from transform_shim.displays.values import ColumnProfile, Profile, StageSpan, read_displays
from transform_shim.writing.frame_source import open_frame
from transform_shim.writing.output import write_output


def written(frame: Any, place: Path, data_format: Any = "jsonl") -> TableFile:
    output, manifest = place / "output", place / "manifest.json"
    write_output(open_frame(frame, []), data_format, output, manifest, Progress(None, "write", "output"))
    return TableFile("output", output, manifest, data_format)


@pytest.mark.parametrize("data_format", ["jsonl", "csv", "parquet", "arrow"])
def test_figures_are_those_of_pandas_in_every_format(tmp_path: Path, data_format: Any) -> None:
    values = [1.0, 2.0, 2.0, 5.0, None]
    days = pd.to_datetime(["2024-01-02", "2024-01-01", None, "2024-01-03", "2024-01-03"])
    frame = pd.DataFrame({"n": values, "zip": ["007", None, "010", "1", "x" * 60], "day": days})
    found = profile(written(frame, tmp_path, data_format))
    n, text, day = found.columns
    quartiles = pd.Series(values).quantile([0.25, 0.5, 0.75])
    assert (found.rows, n.nulls, n.distinct, n.smallest, n.largest) == (5, 1, 3, "1", "5")
    assert n.quartiles == tuple(f"{value:g}" for value in quartiles)
    assert n.histogram == (1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1)
    assert (text.base_type, text.nulls, text.largest, text.quartiles) == ("Text", 1, f"{'x' * 39}…", None)
    assert (day.base_type, day.nulls, day.distinct, day.smallest) == ("DateTime", 1, 3, "2024-01-01 00:00:00")


def test_result_without_rows_has_no_figures(tmp_path: Path) -> None:
    found = profile(written(pd.DataFrame({"n": pd.Series([], dtype="float64")}), tmp_path))
    assert found == Profile(0, (ColumnProfile("n", "Float", 0, 0),))


def test_numbers_as_far_apart_as_floats_can_be_have_a_histogram(tmp_path: Path) -> None:
    (column,) = profile(written(pd.DataFrame({"n": [-1.7e308, 0.0, 1.7e308]}), tmp_path)).columns
    assert column.histogram is not None
    assert (column.histogram[0], column.histogram[-1], sum(column.histogram)) == (1, 1, 3)


@pytest.mark.parametrize("data_format", ["jsonl", "parquet"])
def test_large_numbers_close_together_have_a_histogram(tmp_path: Path, data_format: Any) -> None:
    frame = pd.DataFrame({"id": [1_790_000_000_000_000_000, 1_790_000_000_000_000_001], "at": [1.79e15] * 2})
    near, constant = profile(written(frame, tmp_path, data_format)).columns
    assert (near.distinct, sum(near.histogram or ())) == (2, 2)
    assert sum(constant.histogram or ()) == 2


@pytest.mark.parametrize("data_format", ["jsonl", "parquet"])
def test_decimals_have_no_zeros_of_their_column(tmp_path: Path, data_format: Any) -> None:
    frame = pa.table({"d": [Decimal("10.00"), Decimal("2.50")], "u": pa.array([1, 2**64 - 1], pa.uint64())})
    found = profile(written(frame, tmp_path, data_format)).columns
    assert [(column.smallest, column.largest) for column in found] == [("2.5", "10"), ("1", str(2**64 - 1))]


def test_date_that_python_has_not_leaves_out_the_ends_alone(tmp_path: Path) -> None:
    days = pa.array([0, 3_000_000], pa.int32()).cast(pa.date32())  # the year 10183
    (column,) = profile(written(pa.table({"day": days}), tmp_path, "parquet")).columns
    assert (column.distinct, column.smallest, column.largest) == (2, None, None)


def test_large_result_is_profiled_in_part_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PROFILED_BYTES", 1)
    found = profile(written(pd.DataFrame({"text": ["x" * 1000] * 50_000}), tmp_path))
    assert 0 < found.rows < 50_000
    assert f"the first {found.rows:,} of 50,000 rows" in profile_html(found, 50_000)


def test_the_gateway_reads_the_profile_of_the_shim(tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": [1, 2, 3], "\N{GRINNING FACE}" * 2000: ["a", None, "c"]})
    record_profile(written(frame, tmp_path), Recorder(tmp_path / "displays"))
    (read,) = parse_displays((tmp_path / "displays").read_bytes())
    assert isinstance(read, DisplayedProfile)
    assert [(column.nulls, column.distinct, column.smallest) for column in read.columns] == [(0, 3, "1"), (1, 2, "a")]
    shown = read_displays(tmp_path / "displays").profile
    assert shown is not None
    assert [column.histogram for column in shown.columns] == [column.histogram for column in read.columns]


def test_wide_result_has_a_profile_of_its_first_columns(tmp_path: Path) -> None:
    columns = tuple(ColumnProfile(f"c{number}", "Text", 0) for number in range(MOST_PROFILE_COLUMNS + 1))
    Recorder(tmp_path / "displays").profile(Profile(1, columns))
    (read,) = parse_displays((tmp_path / "displays").read_bytes())
    assert isinstance(read, DisplayedProfile)
    assert len(read.columns) == MOST_PROFILE_COLUMNS


def test_images_and_tables_do_not_displace_the_profile(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "displays")
    for _ in range(30):
        recorder.table([["a"]], [["1"]], 0)
    recorder.profile(Profile(1, ()))
    read = parse_displays((tmp_path / "displays").read_bytes())
    assert (len(read), isinstance(read[-1], DisplayedProfile)) == (21, True)


def test_output_that_cannot_be_profiled_costs_a_line_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = written(pd.DataFrame({"n": [1]}), tmp_path)
    output.data_path.write_text("{")
    record_profile(output, Recorder(tmp_path / "displays"))
    assert "WARNING: the result has no profile: " in capsys.readouterr().err
    assert not (tmp_path / "displays").exists()


@pytest.mark.parametrize(
    "entry",
    [
        {"rows": -1, "columns": []},
        {"rows": 1, "columns": [{"name": "<b>"}]},
        {"rows": 1},
        {"rows": 0, "columns": [{"name": "n", "base_type": "Text", "nulls": 1}]},
    ],
)
def test_forged_profile_is_dropped(entry: dict[str, Any]) -> None:
    assert parse_displays(json.dumps({"type": "profile", **entry}).encode()) == []


def test_pictures_are_of_text_and_bars_only() -> None:
    column = ColumnProfile("<script>", "Integer", 1, 2, "<i>", "5", ("1", "2", "3"), (0, 4, *[1] * 10))
    page = profile_html(Profile(4, (column,)), 4)
    assert "<script>" not in page
    assert "&lt;i&gt;" in page
    assert "1\N{NO-BREAK SPACE}(25\N{NO-BREAK SPACE}%)" in page
    assert "height: 20.0px" in page
    assert "white-space: nowrap'><span title='12 bins" in page, "a histogram must not break into two lines"
    bars = waterfall_html([StageSpan("queue", 10.0, 11.0), StageSpan("<read>", 11.0, 12.0, "execute")])
    assert "margin-left: 0.00%; width: 50.00%" in bars
    assert "margin-left: 50.00%; width: 50.00%" in bars
    assert "&lt;read&gt;" in bars
