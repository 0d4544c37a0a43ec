"""Written, read and written again, every value is what it was: over all dtypes, by hypothesis."""

from __future__ import annotations

import datetime as dt
import json
import math
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transform_shim.core.progress import Progress
from transform_shim.core.table_file import TableFile
from transform_shim.reading.frame_kinds import load_table
from transform_shim.reading.table_source import TableSource
from transform_shim.writing.frame_source import open_frame
from transform_shim.writing.output import write_output

pytestmark = pytest.mark.usefixtures("each_size")

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.lists(TEXTS, min_size=1, max_size=4, unique=True)
INSTANTS = st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30))
DECIMALS = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30, places=8)


def column(values: st.SearchStrategy[Any], dtype: Any, rows: int, nullable: bool = True) -> st.SearchStrategy[Any]:
    cells = st.none() | values if nullable else values
    return st.lists(cells, min_size=rows, max_size=rows).map(lambda found: pd.Series(found, dtype=dtype))


COLUMNS: dict[str, Callable[[int], st.SearchStrategy[Any]]] = {
    "int64": lambda n: column(st.integers(-(2**63), 2**63 - 1), "int64", n, nullable=False),
    "int8": lambda n: column(st.integers(-128, 127), "int8", n, nullable=False),
    "uint64": lambda n: column(st.integers(0, 2**64 - 1), "uint64", n, nullable=False),
    "Int64": lambda n: column(st.integers(-(2**63), 2**63 - 1), "Int64", n),
    "big": lambda n: column(st.integers(-(10**60), 10**60), object, n),
    "float64": lambda n: column(st.floats(allow_nan=False, allow_infinity=False), "float64", n),
    "float32": lambda n: column(st.floats(width=32, allow_nan=False, allow_infinity=False), "float32", n),
    "bool": lambda n: column(st.booleans(), "bool", n, nullable=False),
    "boolean": lambda n: column(st.booleans(), "boolean", n),
    "string": lambda n: column(TEXTS, "string", n),
    "object text": lambda n: column(TEXTS, object, n),
    "category": lambda n: column(TEXTS, "category", n),
    "decimal": lambda n: column(DECIMALS, object, n),
    "date": lambda n: column(st.dates(), object, n),
    "datetime": lambda n: column(INSTANTS, "datetime64[us]", n),
    "datetime ns": lambda n: column(st.integers(-(2**62), 2**62), "Int64", n).map(lambda s: s.astype("datetime64[ns]")),
    "zoned": lambda n: column(INSTANTS, "datetime64[us]", n).map(lambda s: s.dt.tz_localize("UTC")),
    "list": lambda n: column(st.lists(st.integers(-5, 5), max_size=3), object, n),
}


@st.composite
def any_frame(draw: st.DrawFn) -> pd.DataFrame:
    names, rows = draw(NAMES), draw(st.integers(0, 4))
    kinds = [draw(st.sampled_from(sorted(COLUMNS))) for _ in names]
    return pd.DataFrame({name: draw(COLUMNS[kind](rows)) for name, kind in zip(names, kinds, strict=True)})


def there_and_back(
    folder: Path, frame: Any, data_format: Any = "jsonl", frame_kind: Any = "pandas"
) -> tuple[bytes, bytes, Any]:
    """The output of a frame, the output of what was read from it, and what was read."""
    data_path, manifest_path = folder / "data", folder / "manifest"
    write_output(open_frame(frame, []), data_format, data_path, manifest_path, Progress(None, "write", "output"))
    back = load_table(TableSource(TableFile("t", data_path, manifest_path, data_format)), frame_kind).value
    again, again_manifest = folder / "again", folder / "again-manifest"
    write_output(open_frame(back, []), data_format, again, again_manifest, Progress(None, "write", "output"))
    before, after = (json.loads(path.read_bytes())["fields"] for path in (manifest_path, again_manifest))
    assert [(f["name"], f["base_type"]) for f in before] == [(f["name"], f["base_type"]) for f in after]
    return data_path.read_bytes(), again.read_bytes(), back


def examples(count: int) -> settings:
    """Return the settings of hypothesis for this many examples, the same in each run."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )


def for_all(most: int, *strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Make a property a test with a quarter of `most` examples, and a soak test with all of them."""

    def decorate(holds: Callable[..., None]) -> Any:
        @pytest.mark.parametrize("count", [most // 4, pytest.param(most, marks=pytest.mark.soak)])
        def test(count: int) -> None:
            examples(count)(given(*strategies)(holds))()

        test.__name__ = holds.__name__
        return test

    return decorate


def rows(lines: bytes | str, doubles: set[str]) -> list[dict[str, Any]]:
    """The rows of a file with all digits, but for columns of which pandas has doubles."""
    parsed = [json.loads(line, parse_float=Decimal) for line in lines.splitlines()]
    return [{key: float(v) if key in doubles and v is not None else v for key, v in row.items()} for row in parsed]


def decimals_of(manifest_path: Path) -> set[str]:
    fields = json.loads(manifest_path.read_bytes())["fields"]
    return {field["name"] for field in fields if field["base_type"] == "Decimal"}


@for_all(600, any_frame(), st.sampled_from(["pandas", "arrow"]))
def test_json_lines_come_back_as_they_went(frame: pd.DataFrame, frame_kind: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first, second, _ = there_and_back(folder, frame, frame_kind=frame_kind)
        doubles = decimals_of(folder / "manifest") if frame_kind == "pandas" else set()
    assert rows(first, doubles) == rows(second, doubles)


@for_all(200, any_frame(), st.sampled_from(["parquet", "arrow"]))
def test_columnar_files_come_back_as_they_went(frame: pd.DataFrame, data_format: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _, _, back = there_and_back(Path(folder), frame, data_format)
        assert list(back.columns) == list(frame.columns)
        assert len(back) == len(frame)
        doubles = decimals_of(Path(folder) / "manifest")
        assert rows(_json(Path(folder), back), doubles) == rows(_json(Path(folder), frame), doubles)


def _json(folder: Path, frame: pd.DataFrame) -> bytes:
    path = folder / "lines"
    write_output(open_frame(frame, []), "jsonl", path, folder / "lines-manifest", Progress(None, "write", "output"))
    return path.read_bytes()


@for_all(
    300,
    st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])), min_size=1),
    st.sampled_from(["jsonl", "csv"]),
)
def test_texts_survive_character_by_character(values: list[str | None], data_format: Any) -> None:
    frame = pd.DataFrame({"s": pd.Series(values, dtype=object), "n": range(len(values))})
    with tempfile.TemporaryDirectory() as folder:
        first, second, back = there_and_back(Path(folder), frame, data_format)
    assert first == second
    found = [None if value is pd.NA or value != value else value for value in back["s"].astype(object)]
    expected = values if data_format == "jsonl" else [value or None for value in values]  # CSV has no empty text
    assert found == expected


@for_all(300, st.lists(st.floats(), min_size=1), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_numbers_survive_digit_by_digit(floats: list[float], integers: list[int]) -> None:
    rows = max(len(floats), len(integers))
    floats, integers = (floats * rows)[:rows], (integers * rows)[:rows]
    with tempfile.TemporaryDirectory() as folder:
        first, second, back = there_and_back(Path(folder), pd.DataFrame({"f": floats, "i": integers}))
    assert first == second
    assert back["i"].tolist() == integers
    expected = [value if math.isfinite(value) else None for value in floats]
    assert [None if math.isnan(v) else repr(v) for v in back["f"]] == [None if v is None else repr(v) for v in expected]
    for line, value in zip(first.split(b"\n"), expected, strict=False):
        digits = line.split(b'"f":')[1].split(b",")[0].decode()
        assert value is None or len(digits.replace("+", "")) <= len(repr(value)) + 3


WIRE: dict[str, st.SearchStrategy[Any]] = {
    "Integer": st.integers(-(2**31), 2**31 - 1),
    "BigInteger": st.integers(-(2**70), 2**70),
    "Float": st.floats(allow_nan=False, allow_infinity=False),
    "Decimal": DECIMALS,
    "Boolean": st.booleans(),
    "Text": TEXTS,
    "Date": st.dates().map(lambda d: d.isoformat() + "T00:00:00+05:30"),
    "DateTime": INSTANTS.map(lambda d: d.isoformat() + "-05:00"),
    "DateTimeWithTZ": INSTANTS.map(lambda d: d.isoformat() + "Z"),
    "JSON": TEXTS.map(json.dumps),
}


@for_all(600, st.data())
def test_every_form_of_frame_reads_the_same(data: st.DataObject) -> None:
    """What Metabase sends becomes the same output whether it went through pandas or through Arrow."""
    base_types = data.draw(st.lists(st.sampled_from(sorted(WIRE)), min_size=1, max_size=5))
    sent = data.draw(st.lists(st.tuples(*(st.none() | WIRE[base] for base in base_types)), max_size=5))
    lines = ["{" + ",".join(f'"c{i}":{_wire(v)}' for i, v in enumerate(row)) + "}\n" for row in sent]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").write_text("".join(lines))
        fields = [{"name": f"c{i}", "base_type": base} for i, base in enumerate(base_types)]
        (folder / "manifest").write_text(json.dumps({"fields": fields}))
        source = TableSource(TableFile("t", folder / "data", folder / "manifest"))
        outputs = []
        for form in ("pandas", "arrow", "arrow_reader"):
            frame = load_table(source, form).value  # type: ignore[arg-type]
            manifest_path = folder / form
            progress = Progress(None, "write", "output")
            write_output(open_frame(frame, []), "jsonl", folder / "output", manifest_path, progress)
            parsed = rows((folder / "output").read_bytes(), set())
            outputs.append((parsed, json.loads(manifest_path.read_bytes())["fields"]))
    assert outputs[1] == outputs[2]
    assert outputs[0][1] == outputs[1][1]
    assert _as_doubles(outputs[0][0], base_types) == _as_doubles(outputs[1][0], base_types)
    for row, written in zip(sent, outputs[1][0], strict=True):
        for index, (value, base) in enumerate(zip(row, base_types, strict=True)):
            assert _same(value, written[f"c{index}"], base), (base, value, written)


def _as_doubles(written: list[dict[str, Any]], base_types: list[str]) -> list[list[Any]]:
    return [
        [
            float(v) if base == "Decimal" and v is not None else v
            for v, base in zip(row.values(), base_types, strict=True)
        ]
        for row in written
    ]


def _wire(value: Any) -> str:
    return str(value) if isinstance(value, Decimal) else json.dumps(value)


def _same(sent: Any, written: Any, base: str) -> bool:
    if sent is None:
        return written is None
    if base == "Date":
        return bool(written == sent[:10])
    if base in ("DateTime", "DateTimeWithTZ"):
        zone = "Z" if base.endswith("TZ") else ""
        return dt.datetime.fromisoformat(written) == dt.datetime.fromisoformat(
            sent.removesuffix("-05:00").removesuffix("Z") + zone
        )
    if base in ("Float", "Decimal"):
        return Decimal(str(sent)) == Decimal(str(written))
    return type(sent) is type(written) and bool(sent == written)


@pytest.mark.parametrize("kind", sorted(COLUMNS))
def test_every_sort_of_column_is_tried(kind: str) -> None:
    assert COLUMNS[kind](2) is not None
