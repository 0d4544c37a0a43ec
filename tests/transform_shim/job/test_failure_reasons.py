"""A failure says whose it is, where it happened, and what to do: in the answer's message and in the last line."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable

import pytest

from tests.transform_shim.jobs import Outcome, allow_data, columns, table

Job = Callable[..., Outcome]
IMPORTS = "import pandas as pd, polars as pl, pyarrow as pa, duckdb\n"
ORDERS = {"orders": table(columns(status="Text", amount="Float"), '{"status":"a","amount":1.5}\n')}


@pytest.mark.parametrize(
    ("body", "error_type"),
    [
        ("return pl.LazyFrame({'a': ['x']}).select(pl.col('a').cast(pl.Int64))", "InvalidOperationError"),
        ("return pl.LazyFrame({'a': ['x']}).select('b')", "ColumnNotFoundError"),
        ("return duckdb.sql(\"SELECT CAST(v AS INTEGER) AS n FROM (VALUES ('1'), ('x')) t(v)\")", "ConversionException"),
        ("return pa.RecordBatchReader.from_batches(pa.schema([('a', pa.int64())]), parts())", "ValueError"),
    ],
    ids=["polars-cast", "polars-column", "duckdb", "reader"],
)  # fmt: skip
def test_error_of_a_lazy_result_is_the_users(job: Job, body: str, error_type: str) -> None:
    outcome = job(IMPORTS + "def parts():\n    raise ValueError('bad part')\n    yield\ndef transform():\n    " + body)
    assert outcome.result["code"] == "user_error", outcome.stderr
    assert outcome.result["message"].startswith(f"{error_type}: ")
    assert outcome.stderr.startswith("ERROR: Transform function failed: ")


def test_table_that_breaks_in_a_lazy_result_is_still_an_input_error(job: Job) -> None:
    tables = {"orders": table(columns(a="Integer"), '{"a":1}\n{"a":')}
    outcome = job(IMPORTS + "def transform(orders: pl.LazyFrame):\n    return orders", tables)
    assert outcome.result["code"] == "input_invalid"


def test_memory_of_a_lazy_result_is_the_memory_limit(job: Job) -> None:
    code = (
        IMPORTS + "def parts():\n    yield pa.record_batch({'a': pa.array([1])})\n    bytearray(1 << 62)\n"
        "def transform():\n    return pa.RecordBatchReader.from_batches(pa.schema([('a', pa.int64())]), parts())"
    )
    outcome = job(code, before=allow_data(200 << 20))
    assert outcome.result["code"] == "memory_limit", outcome.stderr
    assert not (outcome.folder / "output").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def transform():\n    assert 1 == 2", "AssertionError in transform() (script.py, line 2)"),
        ("def transform():\n    raise ValueError", "ValueError in transform() (script.py, line 2)"),
        ("def transform():\n    next(iter([]))", "StopIteration in transform() (script.py, line 2)"),
        ("def half(n):\n    return 1 / n\ndef transform():\n    half(0)",
         "ZeroDivisionError: division by zero in half() (script.py, line 2)"),
        ("def transform():\n    (lambda: 1 / 0)()",
         "ZeroDivisionError: division by zero in transform() (script.py, line 2)"),
        ("def transform():\n    raise ValueError('one\\ntwo')", "ValueError: one in transform() (script.py, line 2)\ntwo"),
        ("import common", "ValueError: no (common.py, line 1)"),
    ],
)  # fmt: skip
def test_message_begins_with_the_type_and_names_the_line(job: Job, code: str, message: str) -> None:
    outcome = job(code, library={"common": "raise ValueError('no')\n"})
    assert outcome.result["message"] == message


@pytest.mark.parametrize(
    "body",
    [
        "orders['b']",
        "orders.merge(orders, on='b')",
        "orders[['status', 'b']]",
        "orders.loc[:, ['status', 'b']]",
        "orders.groupby('b').sum()",
        "orders.groupby('status')['b'].sum()",
        "orders.groupby('status')[['b']].sum()",
        "orders.query('b > 1')",
    ],
)
def test_missing_column_lists_those_there_are(job: Job, body: str) -> None:
    outcome = job(f"def transform(orders):\n    return {body}", ORDERS)
    assert outcome.result["message"].startswith(("KeyError: ", "UndefinedVariableError: "))
    assert outcome.result["message"].endswith("(script.py, line 2); the columns are: 'status', 'amount'")
    assert outcome.stderr.endswith("HINT: the columns are: 'status', 'amount'\n")


def test_missing_variable_of_a_query_is_no_column(job: Job) -> None:
    outcome = job("def transform(orders):\n    return orders.query('amount > @limit')", ORDERS)
    assert "'limit' is not defined" in outcome.result["message"]
    assert "columns" not in outcome.result["message"] + outcome.stderr


def test_many_columns_are_counted(job: Job) -> None:
    code = IMPORTS + "def transform():\n    return pd.DataFrame({f'c{n}': [n] for n in range(25)})['b']"
    assert job(code).result["message"].endswith("'c18', 'c19' and 5 more")


def test_missing_value_of_a_row_lists_its_labels(job: Job) -> None:
    outcome = job("def transform(orders):\n    return orders.apply(lambda row: row['b'], axis=1)", ORDERS)
    assert outcome.stderr.endswith("HINT: the labels are: 'status', 'amount'\n")


@pytest.mark.parametrize("body", ["orders.loc['b']", "{'a': 1}['b']"])
def test_other_missing_keys_list_no_columns(job: Job, body: str) -> None:
    outcome = job(f"def transform(orders):\n    return {body}", ORDERS)
    assert "KeyError: 'b' in transform()" in outcome.result["message"]
    assert "columns" not in outcome.stderr


def test_users_frames_come_first_and_library_frames_are_folded(job: Job) -> None:
    outcome = job("def transform(orders):\n    return orders['b']", ORDERS)
    assert re.fullmatch(
        r"ERROR: Transform function failed: 'b'\n"
        r"Traceback \(most recent call last\):\n"
        r'  File "script\.py", line 2, in transform\n'
        r"    return orders\['b'\]\n( +[~^]+\n)?"
        r"  \[\d+ frames in pandas\]\n"
        r"  \[caused by KeyError: 'b': \d+ frames? in pandas[^\n]*\]\n"
        r"KeyError: 'b'\n"
        r"HINT: [^\n]*\n",
        outcome.stderr,
    ), outcome.stderr


def test_cause_of_the_users_own_is_kept_whole(job: Job) -> None:
    code = (
        "def transform():\n    try:\n        {}['k']\n    except KeyError as e:\n        raise ValueError('w') from e"
    )
    stderr = job(code).stderr
    assert "KeyError: 'k'\n\nThe above exception was the direct cause of the following exception:\n\n" in stderr
    assert stderr.count('  File "script.py"') == 2


def test_cause_that_was_not_raised_counts_no_frames(job: Job) -> None:
    stderr = job("def transform():\n    raise ValueError('w') from KeyError('k')").stderr
    assert "\n  [caused by KeyError: 'k']\n" in stderr


def test_paths_of_library_and_syntax_errors_are_short(job: Job) -> None:
    outcome = job("import common", library={"common.py": "def f(:\n"})
    assert '  File "common.py", line 1\n' in outcome.stderr
    assert outcome.result["message"] == "SyntaxError: invalid syntax (common.py, line 1) while it was imported"
    assert str(outcome.folder) not in outcome.stderr


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("import nosuch.part", "'nosuch' is neither installed here nor a module of the job's library: "
         "the operator can add packages (transform-gateway packages add)"),
        ("def transform():\n    open('/home/me/data.csv')",
         "a job sees only its own directory; files come in as tables (%table in a notebook)"),
        ("def transform():\n    open('data.csv')",
         "a job sees only its own directory; files come in as tables (%table in a notebook)"),
        ("import errno\ndef transform():\n    raise OSError(errno.EROFS, 'Read-only file system', '/etc/x')",
         "a job can write only to its own directory"),
        ("import subprocess\ndef transform():\n    subprocess.run(['nosuch'])",
         "the program 'nosuch' is not available to jobs"),
        ("import subprocess as s\ndef transform():\n    s.run('echo pip install x; exit 1', shell=True, check=True)",
         "jobs cannot install packages; the operator can add packages (transform-gateway packages add)"),
        (IMPORTS + "def transform():\n    with duckdb.connect() as connection:\n        return connection.sql('select 1')",
         "a DuckDB relation is read when it is written: leave its connection open, or return relation.df()"),
        (IMPORTS + "def transform():\n    return duckdb.sql('select interval 1 month as a').pl()",
         "Polars has no intervals of months: return the DuckDB relation itself, or cast the column to VARCHAR"),
        ("import pdb\ndef transform():\n    raise pdb.bdb.BdbQuit",
         "a job has no terminal: use hold_minutes (--hold) to debug the kernel of a failed job"),
    ],
)  # fmt: skip
def test_closing_line_names_the_way(job: Job, code: str, hint: str) -> None:
    outcome = job(code)
    assert outcome.result["code"] == "user_error"
    assert outcome.stderr.endswith(f"HINT: {hint}\n")
    assert outcome.result["message"].endswith(f"; {hint}")


def test_table_that_is_no_parameter_is_named(job: Job) -> None:
    outcome = job("def transform():\n    return orders", ORDERS)
    assert outcome.stderr.endswith("HINT: 'orders' is a table: transform() gets it as a parameter of this name\n")
    assert "HINT" not in job("def transform():\n    return customers", ORDERS).stderr


@pytest.mark.parametrize("line", ["%matplotlib inline", "!pip install x"])
def test_commands_of_a_notebook_are_told_apart(job: Job, line: str) -> None:
    outcome = job(f"{line}\ndef transform():\n    return 1")
    assert outcome.result["code"] == "syntax_error"
    assert outcome.stderr.endswith("HINT: lines with % and ! are commands of notebooks: leave them out of a script\n")


NO_ROUTE = "import errno, socket\ndef transform():\n    raise OSError(errno.ENETUNREACH, 'Network is unreachable')"


@pytest.mark.parametrize("has_network", [False, True])
def test_no_network_is_said_only_where_there_is_none(
    job: Job, monkeypatch: pytest.MonkeyPatch, has_network: bool
) -> None:
    monkeypatch.setattr("transform_shim.job.failure_hints._has_network", lambda: has_network)
    assert ("HINT: jobs have no network" in job(NO_ROUTE).stderr) is not has_network


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("pd.Series([1])", "a Series is one column: return series.to_frame(), or series.reset_index() to keep its index"),
        ("[{'a': 1}]", "for a list of rows, return pd.DataFrame(rows)"),
        ("{'a': [1]}", "for a dict of columns, return pd.DataFrame(columns)"),
        ("pd.Series([1]).to_numpy()", "for an array, return pd.DataFrame(array)"),
        ("asyncio.sleep(0)", "for a coroutine, return asyncio.run(coroutine)"),
        ("[('a', 1), ('b', 2)]", "for a list of rows, return pd.DataFrame(rows)"),
        ("pd.DataFrame({'a': [1]}),", "return the data frame itself, not a tuple of it; is there a comma after it?"),
        ("[pl.DataFrame({'a': [1]})]", "return the data frame itself, not a list of it"),
        ("(pd.DataFrame({'a': [1]}), {'cursor': 5})", "return the data frame alone"),
        ("[pd.DataFrame({'a': [1]})] * 2", "return one data frame: pd.concat(frames) puts several below each other"),
        ("pd.Series([1]).mean()", "for a single value, return pd.DataFrame({'value': [value]})"),
        ("pd.DataFrame({'a': [1]}).groupby('a')", "groups are no table yet: aggregate them, for example with .sum()"),
        ("duckdb.execute('select 1')", "a DuckDB connection is no table: return connection.sql(query)"),
    ],
)  # fmt: skip
def test_wrong_return_value_says_how_to_make_a_frame_of_it(job: Job, value: str, hint: str) -> None:
    outcome = job(IMPORTS + f"import asyncio\ndef transform():\n    return {value}")
    assert outcome.result["code"] == "invalid_return"
    assert outcome.stderr.endswith(f"\nHINT: {hint}\n")
    assert outcome.stderr.startswith("ERROR: Transform function must return a pandas DataFrame, got <class ")


def test_breakpoint_says_that_there_is_no_terminal(job: Job) -> None:
    outcome = job("def transform():\n    breakpoint()")
    assert "no terminal" in outcome.result["message"]
    assert "hold_minutes" in outcome.result["message"]
    assert outcome.stdout == ""
    assert "(script.py, line 2)" in outcome.result["message"]


def test_arguments_are_those_of_a_script(job: Job) -> None:
    assert job(IMPORTS + "import sys\ndef transform():\n    return pd.DataFrame({'v': sys.argv})").cells("v") == [
        "script.py"
    ]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("async def transform():\n    return 1", "coroutine"),
        ("def transform():\n    yield 1", "generator"),
        ("async def transform():\n    yield 1", "async_generator"),
    ],
)
def test_coroutines_and_generators_are_wrong_return_types(job: Job, code: str, kind: str) -> None:
    outcome = job(code)
    assert outcome.result["code"] == "invalid_return"
    first, hint = outcome.stderr.splitlines()
    assert first == f"ERROR: Transform function must return a pandas DataFrame, got <class '{kind}'>"
    assert hint.startswith("HINT: ")


def warnings_as_in_a_new_process() -> None:
    """Take back what pytest changed: it records warnings, and makes errors of them."""
    importlib.reload(warnings)
    warnings.simplefilter("default")


def test_warnings_show_the_path_that_tracebacks_show(job: Job) -> None:
    code = "import warnings, common\ndef transform():\n    warnings.warn('careful')\n    common.f(1 is 1)"
    library = {"common.py": "import warnings\ndef f(_):\n    warnings.warn('as well')"}
    lines = job(code, library=library, before=warnings_as_in_a_new_process).stderr.splitlines()
    assert lines[0].startswith('script.py:4: SyntaxWarning: "is" with ')
    assert lines[2:6] == [
        "script.py:3: UserWarning: careful",
        "  warnings.warn('careful')",
        "common.py:3: UserWarning: as well",
        "  warnings.warn('as well')",
    ]


def test_an_exception_in_a_thread_is_shown_as_that_of_a_job(job: Job) -> None:
    code = (
        "import json, sys, threading\nimport pandas as pd\ndef work(text):\n    return json.loads(text)\n"
        "def transform():\n    for target, given in ((sys.exit, 'quietly'), (work, 'x')):\n"
        "        thread = threading.Thread(target=target, args=(given,), name='of the user')\n"
        "        thread.start()\n        thread.join()\n    return pd.DataFrame({'n': [1]})\n"
    )
    outcome = job(code)
    assert outcome.result["outcome"] == "ok", outcome.stderr
    assert [line for line in outcome.stderr.splitlines() if "^" not in line][:5] == [
        "Exception in thread of the user:",
        "Traceback (most recent call last):",
        '  File "script.py", line 4, in work',
        "    return json.loads(text)",
        "  [3 frames in json]",
    ]


@pytest.mark.parametrize(("call", "status"), [("exit()", 0), ("quit(3)", 3), ("exit('why')", 1)])
def test_exit_and_quit_are_those_of_a_script(job: Job, call: str, status: int) -> None:
    outcome = job(f"def transform():\n    {call}")
    assert outcome.result["code"] == "exited"
    assert outcome.result["exit_code"] == (status or 1)
    assert "in transform() (script.py, line 2)" in outcome.result["message"]


def test_null_byte_is_a_syntax_error_with_its_line(job: Job) -> None:
    outcome = job("a = 1\nb = '\0'\ndef transform():\n    pass")
    assert outcome.result["code"] == "syntax_error"
    assert outcome.result["message"].startswith(
        "SyntaxError: source code cannot contain null bytes (script.py, line 2)"
    )
