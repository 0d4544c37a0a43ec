"""The client sends files and data frames with the values that they have, or says why it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from gateway.client import TransformClient
from tests.support.fake_gateway import FakeGateway
from tests.support.gateway_process import GatewayProcess


@pytest.mark.parametrize("index", [pd.period_range("2024", periods=2, freq="M"), pd.interval_range(0, 2)])
def test_frame_whose_values_would_become_others_is_not_sent(index: Any) -> None:
    with FakeGateway() as fake, pytest.raises(TypeError, match=r"column 'a' has the type \w+: make it text"):
        TransformClient(fake.url).run("c", {"t": pd.DataFrame({"a": index})})
    assert fake.asked == []


def test_integers_beyond_64_bits_are_refused_with_the_name_of_their_column() -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": [1 << 70, 2]})
    with FakeGateway() as fake, pytest.raises(TypeError, match=r"column 'b' has integers beyond 64 bits: .*Decimal"):
        TransformClient(fake.url).run("c", {"t": frame})
    assert fake.asked == []


def test_real_job_takes_files_that_are_converted_first_and_a_library_from_a_file(
    running_gateway: GatewayProcess, tmp_path: Path
) -> None:
    frame = pd.DataFrame({"id": [1, 2], "name": ["007", None]})
    frame.to_csv(tmp_path / "packed.csv.gz", index=False)
    frame.to_excel(tmp_path / "book.xlsx", index=False)
    frame.to_json(tmp_path / "array.json", orient="records")
    frame.to_json(tmp_path / "lines.json", orient="records", lines=True)
    (tmp_path / "helper.py").write_text("def names(table):\n    return [str(name) for name in table['name']]\n")
    tables = {path.name.split(".")[0]: path for path in tmp_path.glob("*.*") if path.suffix != ".py"}
    code = (
        "import helper\n"
        "import pandas as pd\n"
        "def transform(**tables):\n"
        "    return pd.DataFrame({name: [helper.names(table)] for name, table in sorted(tables.items())})\n"
    )
    client = TransformClient(running_gateway.url, running_gateway.token)
    result = client.run(code, tables, library={"helper": tmp_path / "helper.py"})
    names = '["007","None"]'
    assert result.frame().iloc[0].to_dict() == {"array": names, "book": names, "lines": names, "packed": names}


def test_frames_of_pandas_and_arrow_arrive_with_their_own_columns(running_gateway: GatewayProcess) -> None:
    letters = [pa.table({"c": pa.array(values).dictionary_encode()}) for values in (["a", "b"], ["z", "a"])]
    numbers = pd.DataFrame({"n": [1, 2, 3], "k": ["x", "y", "z"]})
    code = (
        "import pandas as pd\n"
        "def transform(few, named, parts):\n"
        "    return pd.DataFrame({'few': [list(few)], 'named': [sorted(named)], 'parts': [parts['c'].tolist()]})\n"
    )
    tables = {"few": numbers[numbers.n > 1], "named": numbers.set_index("k"), "parts": pa.concat_tables(letters)}
    result = TransformClient(running_gateway.url, running_gateway.token).run(code, tables)
    assert result.frame().iloc[0].to_dict() == {
        "few": '["n","k"]', "named": '["k","n"]', "parts": '["a","b","z","a"]',
    }  # fmt: skip


def test_levels_of_column_names_are_joined_as_in_a_result(running_gateway: GatewayProcess) -> None:
    sales = pd.DataFrame({"shop": ["a", "a", "b"], "n": [1, 2, 3]})
    totals = sales.groupby("shop").agg({"n": ["sum", "max"]})
    client = TransformClient(running_gateway.url, running_gateway.token)
    result = client.run("def transform(t, u):\n    return t.merge(u)\n", {"t": totals, "u": totals.reset_index()})
    assert result.frame().to_dict("list") == {"n_sum": [3, 3], "n_max": [2, 3], "shop": ["a", "b"]}


def test_frame_of_a_result_keeps_integers_of_each_width_with_nulls(running_gateway: GatewayProcess) -> None:
    kinds = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
    table = pa.table({str(kind): pa.array([1, None], kind) for kind in kinds})
    code = "def transform(t):\n    print(','.join(map(str, t.dtypes)))\n    return t\n"
    result = TransformClient(running_gateway.url, running_gateway.token).run(code, {"t": table})
    assert ",".join(map(str, result.frame().dtypes)) == result.log[0].message
