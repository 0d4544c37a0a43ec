"""OFFICIAL_COMPATIBILITY writes what Metabase's own tests of the official runner compare."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.gateway_process import GatewayProcess
from transform_shim.writing.official_digits import _round

TRACE_BEGIN = re.compile(
    r"ERROR: Transform function failed: Something went wrong\n"
    r"Traceback \(most recent call last\):\n"
    r'  File "/transform/transform_runner\.py", line 1, in main\n'
)
#: Metabase's test (enterprise transforms-python, `transform-function-error-test`): file names, functions and carets.
TRACE = re.compile(
    r"ERROR: Transform function failed: Something went wrong\n"
    r"Traceback \(most recent call last\):\n"
    r'  File "(/[\w-]+)+/transform_runner\.py", line \d+, in main\n'
    r"    result = script\.transform\(\)\n"
    r"             \^{18}\n"
    r'  File "(/[\w-]+)+/script\.py", line 2, in transform\n'
    r"    raise ValueError\('Something went wrong'\)\n"
    r"ValueError: Something went wrong"
)
CIRCLES = (
    "import math\nimport pandas as pd\ndef transform():\n"
    "    return pd.DataFrame({'area': [math.pi * 25, math.pi * 100, 1e-12, 1.7976931348623157e308, None]})"
)
CHAINED = (
    "def transform():\n    try:\n        1 / 0\n    except ZeroDivisionError as e:\n        raise KeyError('k') from e"
)


@pytest.fixture(scope="module")
def official() -> Iterator[GatewayProcess]:
    with GatewayProcess({"OFFICIAL_COMPATIBILITY": "true"}) as gateway:
        yield gateway


def rows(gateway: GatewayProcess, request_id: str) -> list[float | None]:
    output = gateway.execute(CIRCLES, request_id, inline=True).body["output"]
    return [json.loads(line)["area"] for line in output.splitlines()]


def test_floats_have_ten_decimals(official: GatewayProcess) -> None:
    assert rows(official, "digits") == [78.5398163397, 314.159265359, 0.0, 1.7976931348623157e308, None]


LAZY = {
    "polars": "import polars as pl\ndef transform():\n    return pl.LazyFrame({'area': [25.0]}).select(pl.col('area') * math.pi)",
    "duckdb": "import duckdb\ndef transform():\n    return duckdb.sql('select 25 * pi() as area')",
    "reader": (
        "import pyarrow as pa\ndef transform():\n    table = pa.table({'area': [25 * math.pi]})\n"
        "    return pa.RecordBatchReader.from_batches(table.schema, (batch for batch in table.to_batches()))"
    ),
}


@pytest.mark.parametrize("kind", LAZY)
@pytest.mark.parametrize("output_format", ["jsonl", "csv"])
def test_floats_of_lazy_results_have_ten_decimals(official: GatewayProcess, kind: str, output_format: str) -> None:
    script = f"import math\n{LAZY[kind]}"
    answer = official.execute(script, f"lazy-{kind}", inline=True, output_format=output_format)
    assert "78.5398163397" in answer.body["output"].replace("}", "\n").split()[-1].split(":"), answer.body


def test_floats_keep_their_digits_without_it(running_gateway: GatewayProcess) -> None:
    assert rows(running_gateway, "digits") == [
        78.53981633974483,
        314.1592653589793,
        1e-12,
        1.7976931348623157e308,
        None,
    ]


def test_traceback_starts_with_the_runners_own_frame(official: GatewayProcess) -> None:
    official.execute("def transform():\n    raise ValueError('Something went wrong')", "trace")
    text = "\n".join(event["message"] for event in official.log("trace"))
    assert TRACE.fullmatch(text), text


def test_traceback_of_a_lazy_result_starts_with_the_runners_own_frame(official: GatewayProcess) -> None:
    lines = (
        "import pyarrow as pa\n\ndef batches():\n    raise ValueError('Something went wrong')\n    yield\n\n"
        "def transform():\n    return pa.RecordBatchReader.from_batches(pa.schema([('a', pa.int64())]), batches())"
    )
    assert official.execute(lines, "lazy").body["code"] == "user_error"
    text = "\n".join(event["message"] for event in official.log("lazy"))
    assert TRACE_BEGIN.match(text), text
    assert text.endswith(
        '  File "/transform/script.py", line 4, in batches\n'
        "    raise ValueError('Something went wrong')\nValueError: Something went wrong"
    )
    assert "frames in" not in text, "nothing is folded"


def test_only_the_last_of_chained_errors_reaches_the_runner(official: GatewayProcess) -> None:
    official.execute(CHAINED, "chained")
    messages = [event["message"] for event in official.log("chained")]
    assert messages.count("    result = script.transform()") == 1
    assert messages.index("ZeroDivisionError: division by zero") < messages.index("    result = script.transform()")
    assert messages[-1] == "KeyError: 'k'"


@pytest.mark.parametrize("output_format", ["jsonl", "csv"])
def test_narrow_floats_have_the_digits_of_doubles(official: GatewayProcess, output_format: str) -> None:
    script = (
        "import pandas as pd\ndef transform():\n"
        "    return pd.DataFrame({'n': pd.Series([0.1, 123456792, None], dtype='float32')})"
    )
    answer = official.execute(script, f"narrow-{output_format}", inline=True, output_format=output_format)
    assert re.findall(r"[\d.]+", answer.body["output"]) == ["0.1000000015", "123456792.0"], answer.body


@given(
    st.lists(
        st.none() | st.floats(allow_nan=False, allow_infinity=False, min_value=-1e308, max_value=1e308), max_size=30
    )
)
def test_digits_are_those_of_pandas(values: list[float | None]) -> None:
    written = json.loads(pd.DataFrame({"v": pd.Series(values, dtype="float64")}).to_json(orient="records"))
    assert _round(pa.array(values, type=pa.float64())).to_pylist() == [row["v"] for row in written]
