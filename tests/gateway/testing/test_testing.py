"""The helpers for tests of transforms: one gateway for all, typed tables, messages that say what differs."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gateway.client import TransformClient
from gateway.testing import TransformTester, assert_frame
from tests.support.gateway_process import GatewayProcess
from tests.test_house import ROOT

TYPES = "import pandas as pd\ndef transform(t):\n    return pd.DataFrame({'type': [str(k) for k in t.dtypes]})\n"


@pytest.fixture
def tester(running_gateway: GatewayProcess) -> TransformTester:
    return TransformTester(TransformClient(running_gateway.url, running_gateway.token))


def test_the_plugin_is_declared_where_pytest_looks_for_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert list(project["entry-points"]["pytest11"].values()) == ["gateway.testing.plugin"]
    # pytest loads it in each run of the environment, also where no transform is tested
    code = "import sys, gateway.testing.plugin; print([name for name in ('pandas', 'gateway.client') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_types_of_a_table_come_from_its_contract_or_manifest(tester: TransformTester, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("zip,n,at\n007,1,2024-01-02\n008,,2024-01-03\n")
    (tmp_path / "t.schema.yaml").write_text(
        "columns:\n  zip: {type: text}\n  n: {type: integer}\n  at: {type: datetime}\n"
    )
    assert_frame(tester.run(TYPES, {"t": tmp_path / "t.csv"}), {"type": ["object", "Int64", "datetime64[ns]"]})
    (tmp_path / "wrong.csv").write_text("n\n1\n")
    (tmp_path / "wrong.schema.yaml").write_text("columns:\n  n: {type: int}\n")
    with pytest.raises(ValueError, match=r"wrong\.schema\.yaml: columns\['n'\]: expected a type of .*, not 'int'"):
        tester.run(TYPES, {"t": tmp_path / "wrong.csv"})
    (tmp_path / "t.manifest.json").write_text(
        '{"fields": [{"name": "zip", "base_type": "type/Text"}, {"name": "n", "base_type": "type/Float"}, '
        '{"name": "at", "base_type": "type/Text"}]}'
    )
    result = tester.run(TYPES, {"t": tmp_path / "t.csv"})
    assert result.frame()["type"].tolist() == ["object", "float64", "object"]
    manifest = {"fields": [{"name": "n", "base_type": "type/Integer"}]}
    assert_frame(tester.run(TYPES, {"t": pd.DataFrame({"n": [1, 2]})}, manifests={"t": manifest}), {"type": ["int64"]})


@pytest.mark.parametrize(
    ("found", "expected", "said"),
    [
        ({"k": [1, 2], "v": [1.0, 2.0]}, {"k": [2, 1], "v": [2.0, 1.0 + 1e-12]}, ""),
        ({"k": [1, 2], "v": [1.0, 2.5]}, {"k": [1, 2], "v": [1.0, 2.0]}, "v: 1 cell changed"),
        ({"k": [1, 2]}, {"k": [1]}, "rows: 1 added"),
        ({"k": [1]}, {"k": [1], "v": [1]}, "columns removed: v"),
        ({"k": ["1"]}, {"k": [1]}, "type of k: integer -> text"),
        ({"k": [1.0]}, {"k": [1]}, "type of k: integer -> float"),
        ({"k": [dt.date(2024, 1, 1)]}, {"k": [dt.date(2024, 1, 1)]}, ""),
    ],
)
def test_assert_frame_names_the_difference(elsewhere: Callable[..., Any], found: Any, expected: Any, said: str) -> None:
    texts = elsewhere(differences, found, expected)
    assert len(texts) == 3
    assert all(said in text if said else text == "" for text in texts), texts


def differences(found: Any, expected: Any) -> list[str]:
    """Compare a table of each kind, and return the texts of the errors; Polars starts threads."""
    import polars as pl

    texts = []
    for table in (pl.DataFrame(found), pl.DataFrame(found).to_arrow(), pd.DataFrame(found)):
        try:
            assert_frame(table, expected, key=["k"])
        except AssertionError as error:
            texts.append(str(error))
        else:
            texts.append("")
    return texts


def test_a_file_is_compared_without_the_types_that_it_does_not_tell(tmp_path: Path) -> None:
    (tmp_path / "expected.csv").write_text("k,v\n007,1\n")
    assert_frame(pd.DataFrame({"k": ["007"], "v": [1.0]}), tmp_path / "expected.csv")
    with pytest.raises(AssertionError, match="rows: 1 added, 1 removed"):
        assert_frame(pd.DataFrame({"k": ["007"], "v": [2.0]}), tmp_path / "expected.csv")
