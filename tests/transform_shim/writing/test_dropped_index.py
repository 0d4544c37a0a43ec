"""The index is not written: a user who would lose data by that is warned, as for odd names of columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from tests.transform_shim.jobs import Outcome, columns, table
from tests.transform_shim.writing.test_writing import text
from transform_shim.core.errors import OutputInvalid

Job = Callable[..., Outcome]
ROWS = "".join(json.dumps({"k": "ab"[i % 2], "n": i, "at": f"2024-01-{i + 1:02}T00:00:00"}) + "\n" for i in range(6))
TABLES = {"t": table(columns(k="Text", n="Integer", at="DateTime"), ROWS)}


@pytest.mark.parametrize(
    ("expression", "levels"),
    [
        ("t.groupby('k')[['n']].sum()", "k"),
        ("t.groupby(['k', 'at'])[['n']].sum()", "k, at"),
        ("t.set_index('n')", "n"),
        ("t.pivot(index='at', columns='k', values='n')", "at"),
        ("t.set_index('at').resample('D')[['n']].sum()", "at"),
        ("t[['n']].describe()", "unnamed"),
        ("t[['n']].set_axis([2019, 2020, 2021, 2022, 2023, 2024])", "unnamed"),
        ("t[['n']].T", "unnamed"),
        ("t.set_index([t['k'], [0] * 6])", "k, unnamed"),
    ],
)
def test_meaningful_index_gives_a_warning(job: Job, expression: str, levels: str) -> None:
    outcome = job(f"def transform(t):\n    return {expression}", TABLES)
    assert outcome.result["code"] == "ok", outcome.stderr
    assert outcome.stderr == f"WARNING: the index ({levels}) is not written; reset_index() keeps it\n"
    assert outcome.stdout == ""


@pytest.mark.parametrize(
    "expression",
    [
        "t", "t[t['n'] > 2]", "t.sort_values('n', ascending=False)", "t.dropna().head(2)", "t.iloc[::2]", "t.sample(3)",
        "t.groupby('k', as_index=False)['n'].sum()", "t.merge(t, on='k')", "__import__('pandas').concat([t, t])", "t[t['n'] > 99]",
    ],
)  # fmt: skip
def test_row_numbers_are_no_loss(job: Job, expression: str) -> None:
    assert job(f"def transform(t):\n    return {expression}", TABLES).stderr == ""


@pytest.mark.parametrize(
    "expression",
    [
        "t.sort_values('a')",
        "pd.concat([t, t])",
        "t.assign(b=[[1], [2, 3]]).explode('b')",
        "t.drop_duplicates('a', keep='last')",
    ],
)
def test_row_numbers_of_a_frame_that_the_script_made_are_no_loss(job: Job, expression: str) -> None:
    code = f"import pandas as pd\ndef transform():\n    t = pd.DataFrame({{'a': [2, 1]}})\n    return {expression}"
    assert job(code).stderr == ""


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (pd.DataFrame({"d": [1, 2]}).set_index("d"), r"2 rows and no columns; reset_index\(\) makes columns"),
        (pd.DataFrame(index=range(1)), r"1 row and no columns$"),
        (pa.table({"a": [1]}).select([]), "rows and no columns"),
    ],
)
def test_rows_without_columns_are_an_error(tmp_path: Path, frame: object, words: str) -> None:
    with pytest.raises(OutputInvalid, match=words):
        text(tmp_path, frame)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["", "a"], "a column has an empty name"),
        ([float("nan"), "a"], "a column has no name, and is written as 'nan'"),
        ([None, "a"], "a column has no name, and is written as 'None'"),
        (["Name", "name"], "the columns 'Name' and 'name' differ only in case"),
        (["STRASSE", "straße"], "the columns 'STRASSE' and 'straße' differ only in case"),
    ],
)
def test_odd_names_give_a_warning(
    tmp_path: Path, names: list[object], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.DataFrame([[1, 2]])
    frame.columns = pd.Index(names, dtype=object)
    assert len(json.loads(text(tmp_path, frame))) == 2
    assert capsys.readouterr().err == f"WARNING: {told}\n"
