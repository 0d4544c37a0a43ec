"""Output contracts: each rule holds for every kind of result, and a breach names column, rule and rows."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from tests.transform_shim.jobs import Outcome
from transform_shim.core.contract import parse_contract
from transform_shim.core.errors import ContractInvalid, OutputSchemaViolated
from transform_shim.core.progress import Progress
from transform_shim.writing.contract_check import ContractCheck
from transform_shim.writing.frame_source import open_frame
from transform_shim.writing.output import write_output

Job = Callable[..., Outcome]
Elsewhere = Callable[..., int | str]
FRAME = pd.DataFrame(
    {
        "n": pd.array([1, -2, None, 4, 4], "Int64"),
        "x": [0.5, 1.5, None, 2.5, 9.0],
        "s": ["a", "b", "c", None, "a"],
        "day": pd.to_datetime(["2024-01-01", "2024-06-01", "2025-01-01", None, "2023-12-31"]),
        "b": [True, False, True, False, None],
    }
)


def polars() -> Any:
    """Import Polars, which only the process may do that makes and writes the results: it starts threads."""
    import polars

    return polars


#: The same table as each kind of result.
KINDS: dict[str, Callable[[], Any]] = {
    "pandas": lambda: FRAME,
    "polars": lambda: polars().from_pandas(FRAME),
    "lazy": lambda: polars().from_pandas(FRAME).lazy(),
    "arrow": lambda: pa.Table.from_pandas(FRAME, preserve_index=False),
    # a connection of its own: a result that was not read to its end keeps the default one busy
    "duckdb": lambda: duckdb.connect().from_arrow(pa.Table.from_pandas(FRAME, preserve_index=False)),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "polars with NaN": lambda: polars().DataFrame({"x": [1.0, float("nan"), float("nan"), None, None]}),
    "numbers": lambda: polars().select(n=polars().int_range(0, 200_000)).lazy(),
    "repeated number": lambda: polars().select(n=polars().int_range(0, 200_000) % 199_999).lazy(),
}


def write(folder: Path, value: Any, rules: Any) -> int:
    """Write a result with a contract as a job does, and return its rows."""
    check = ContractCheck([parse_contract({"columns": rules}, "schema")], open_frame(value, []))
    progress = Progress(None, "write", "output")
    return write_output(check.frame, "jsonl", folder / "output", folder / "manifest", progress, check.finish).rows


def outcome(folder: Path, kind: str, rules: Any) -> int | str:
    """Write a result of this name, and return its rows or the text of the breach."""
    try:
        return write(folder, (KINDS | OTHERS)[kind](), rules)
    except OutputSchemaViolated as error:
        return str(error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"n": {"min": 0, "type": "integer"}}, "column 'n': min 0: 1 row of 5 from row 0 on (row 1: -2)"),
        ({"n": {"max": 3.5, "type": "number"}}, "column 'n': max 3.5: 2 rows of 5 from row 0 on (row 3: 4, row 4: 4)"),
        ({"n": {"nullable": False}}, "column 'n': nullable false: 1 row of 5 from row 0 on (row 2: null)"),
        ({"x": {"max": 2, "type": "number"}}, "column 'x': max 2: 2 rows of 5 from row 0 on (row 3: 2.5, row 4: 9.0)"),
        ({"x": {"nullable": False}}, "column 'x': nullable false: 1 row of 5 from row 0 on (row 2: null)"),
        ({"s": {"unique": True}}, "column 's': unique: 1 value repeated (rows 0, 4: 'a')"),
        ({"s": {"type": "integer"}}, "column 's': type integer, not text: 4 rows of 5 from row 0 on (row 0: 'a', row 1: 'b', row 2: 'c')"),
        ({"gone": {}}, "column 'gone' is missing; the result has 'n', 'x', 's', 'day', 'b'"),
        (
            {"day": {"type": "datetime", "min": "2024-01-01"}},
            "column 'day': min 2024-01-01 00:00:00: 1 row of 5 from row 0 on (row 4: 2023-12-31 00:00:00)",
        ),
    ],
)  # fmt: skip
def test_breach_names_column_rule_and_rows(
    elsewhere: Elsewhere, tmp_path: Path, kind: str, rules: Any, said: str
) -> None:
    assert elsewhere(outcome, tmp_path, kind, rules) == f"The output contract is violated: {said}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_result_that_keeps_its_contract_is_written(elsewhere: Elsewhere, tmp_path: Path, kind: str) -> None:
    rules = {
        "n": {"type": "integer", "min": -2, "max": 4},
        "x": {"type": "number", "min": 0.5, "max": 9},
        "s": {"type": "text"},
        "day": {"type": "datetime", "min": "2023-12-31", "max": "2025-01-01T00:00:00Z"},
        "b": {"type": "boolean"},
    }
    assert elsewhere(outcome, tmp_path, kind, rules) == 5


@pytest.mark.parametrize(
    ("column", "rule", "is_kept"),
    [
        ([Decimal("1.1")], {"type": "number", "max": 1.2}, True),
        ([Decimal("1.1")], {"type": "number", "max": 1}, False),
        ([Decimal("1.1")], {"type": "integer"}, False),
        ([2**80], {"type": "integer", "min": 2**80}, True),
        ([2**80], {"type": "integer", "max": 2**80 - 1}, False),
        (pd.array([2**64 - 1], "uint64"), {"type": "integer", "max": 2**64 - 2}, False),
        ([2**53 + 1], {"type": "integer", "max": 2**53}, False),
        ([2**53 + 1], {"type": "integer", "max": float(2**53)}, False),
        ([dt.date(2024, 1, 1)], {"type": "date", "min": "2024-01-02"}, False),
        ([dt.datetime(9999, 1, 1)], {"type": "datetime", "max": "9999-01-01"}, True),
        (pd.to_datetime(["2024-01-01T01:00:00+02:00"]), {"type": "datetime", "min": "2024-01-01"}, False),
        (pd.to_datetime(["2024-01-01T01:00:00+02:00"]), {"type": "datetime", "max": "2023-12-31T23:00:00Z"}, True),
        ([float("inf")], {"type": "number", "max": 1e300}, False),
        ([float("-inf")], {"type": "number", "nullable": False}, False),  # it is written as null
        ([float("inf")] * 2, {"type": "number", "unique": True}, True),
        ([1.5], {"type": "number", "max": 10**400}, True),
        (pd.array([0.1], "float32"), {"type": "number", "min": 0.1, "max": 0.1}, True),
        ([Decimal("0.1")], {"type": "number", "min": 0.1, "max": 0.1}, True),
        ([Decimal("0.3")], {"type": "number", "min": 0.3, "max": 0.3}, True),
        ([Decimal("0.3000000000000000001")], {"type": "number", "max": 0.3}, False),
        ([Decimal("5")], {"type": "number", "max": float("inf")}, True),
        (pd.to_datetime([1_577_836_800_000_000_001]), {"type": "datetime", "max": "2020-01-01"}, False),
        (pd.to_datetime([-1]), {"type": "datetime", "min": "1970-01-01"}, False),
        (pd.to_datetime([-1]), {"type": "datetime", "min": "0001-01-01", "max": "9999-12-31"}, True),
        ([None], {"type": "integer", "min": 3}, True),
        (pd.Series([], dtype=object), {"type": "integer", "unique": True, "nullable": False}, True),
        ([None, None], {"unique": True}, True),
        (pd.Categorical(["a", "a"]), {"type": "text", "unique": True}, False),
        ([dt.time(1, 2)], {"type": "time"}, True),
    ],
)
def test_values_are_compared_exactly(tmp_path: Path, column: Any, rule: Any, is_kept: bool) -> None:
    frame = pd.DataFrame({"c": column})
    if is_kept:
        assert write(tmp_path, frame, {"c": rule}) == len(frame)
    else:
        with pytest.raises(OutputSchemaViolated):
            write(tmp_path, frame, {"c": rule})


def test_missing_numbers_are_no_repeated_values(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """Polars tells NaN from null; both are written as null."""
    assert elsewhere(outcome, tmp_path, "polars with NaN", {"x": {"unique": True}}) == 5


def test_breach_in_a_later_batch_of_a_lazy_result_is_found_too(elsewhere: Elsewhere, tmp_path: Path) -> None:
    breach = elsewhere(outcome, tmp_path, "numbers", {"n": {"type": "integer", "max": 199_998}})
    assert str(breach).endswith("(row 199999: 199999)")
    breach = elsewhere(outcome, tmp_path, "repeated number", {"n": {"unique": True}})
    assert str(breach).endswith("column 'n': unique: 1 value repeated (rows 0, 199999: 0)")
    assert list(tmp_path.iterdir()) == []


def test_texts_that_share_objects_are_compared_too(tmp_path: Path) -> None:
    frame = pd.DataFrame({"t": ["a", "b"] * 1000 + [None]}, dtype=object)
    assert write(tmp_path, frame, {"t": {"type": "text"}}) == 2001
    for rule, said in (({"nullable": False}, "row 2000: null"), ({"unique": True}, "2 values repeated")):
        with pytest.raises(OutputSchemaViolated, match=said):
            write(tmp_path, frame, {"t": rule})


def test_at_most_five_violations_are_listed(tmp_path: Path) -> None:
    with pytest.raises(OutputSchemaViolated) as caught:
        write(tmp_path, FRAME, {f"c{number}": {} for number in range(9)})
    assert str(caught.value).count("is missing") == 5
    assert str(caught.value).endswith("; and 4 more")


def test_script_has_a_contract_of_its_own_and_both_hold(job: Job) -> None:
    code = (
        "import datetime\nimport pandas as pd\n"
        "OUTPUT_SCHEMA = {'columns': {'a': {'type': 'datetime', 'max': datetime.date(2024, 1, 1)}, 'n': {'unique': True}}}\n"
        "def transform():\n    return pd.DataFrame({'a': [pd.Timestamp('2024-01-02')], 'n': [1]})\n"
    )
    assert "column 'a': max 2024-01-01" in job(code).result["message"]
    asked = json.dumps({"columns": {"n": {"type": "integer", "min": 2}}})
    assert "column 'a': max 2024-01-01" in job(code, output_schema=asked).result["message"]
    # the official runner knows no such variable
    assert job(code, official_compatibility=True).result["code"] == "ok"


@pytest.mark.parametrize(
    ("contract", "said"),
    [
        ("[]", 'OUTPUT_SCHEMA: expected {"columns": {NAME: RULES}}, not []'),
        ("{'columns': {}, 'rows': 1}", "OUTPUT_SCHEMA: expected {\"columns\": {NAME: RULES}}, not {'columns': {}, 'rows': 1}"),
        ("{'columns': {'a': 'integer'}}", "OUTPUT_SCHEMA: columns['a']: expected an object with type, nullable, min, max, unique, not 'integer'"),
        ("{'columns': {'a': {'typ': 'x'}}}", "OUTPUT_SCHEMA: columns['a']: unknown rule 'typ'; the rules are type, nullable, min, max, unique"),
        ("{'columns': {'a': {'type': 'int'}}}", "OUTPUT_SCHEMA: columns['a'].type: expected integer, number, text, boolean, date, datetime, time, not 'int'"),
        ("{'columns': {'a': {'type': []}}}", "OUTPUT_SCHEMA: columns['a'].type: expected integer, number, text, boolean, date, datetime, time, not []"),
        ("{'columns': {'a': {'nullable': 1}}}", "OUTPUT_SCHEMA: columns['a'].nullable: expected true or false, not 1"),
        ("{'columns': {'a': {'min': 1}}}", "OUTPUT_SCHEMA: columns['a'].min: needs a column of type integer, number, date, datetime"),
        ("{'columns': {'a': {'type': 'date', 'min': 'x'}}}", "OUTPUT_SCHEMA: columns['a'].min: expected a date such as 2025-01-31, not 'x'"),
        ("{'columns': {'a': {'type': 'integer', 'max': float('nan')}}}", "OUTPUT_SCHEMA: columns['a'].max: expected a number, not nan"),
        ("{'columns': {'a': {'type': 'integer', 'max': 1, 'min': 2}}}", "OUTPUT_SCHEMA: columns['a']: min 2 is above max 1"),
        ("{'columns': {1: {}}}", "OUTPUT_SCHEMA: columns: expected the name of a column, not 1"),
    ],
)  # fmt: skip
def test_wrong_contract_is_refused(contract: str, said: str) -> None:
    with pytest.raises(ContractInvalid) as caught:
        parse_contract(eval(contract), "OUTPUT_SCHEMA")
    assert str(caught.value) == said


def test_wrong_contract_fails_the_job_before_transform_runs(job: Job) -> None:
    outcome = job("OUTPUT_SCHEMA = 'x'\ndef transform():\n    print('ran')\n")
    said = """OUTPUT_SCHEMA: expected {"columns": {NAME: RULES}}, not 'x'"""
    assert (outcome.result["code"], outcome.result["message"]) == ("user_error", said)
    assert outcome.stdout == ""


def test_job_that_breaks_its_contract_leaves_no_output(job: Job) -> None:
    code = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'n': [1, -1]})\n"
    outcome = job(code, output_schema=json.dumps({"columns": {"n": {"type": "integer", "min": 0}}}))
    said = "The output contract is violated: column 'n': min 0: 1 row of 2 from row 0 on (row 1: -1)"
    assert (outcome.result["outcome"], outcome.result["code"]) == ("error", "output_schema_violated")
    assert outcome.stderr == f"ERROR: {said}\n"
    assert not (outcome.folder / "output").exists()
    assert not (outcome.folder / "manifest.json").exists()
