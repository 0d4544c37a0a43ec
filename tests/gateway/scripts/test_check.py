"""What `transform-gateway check` finds, and that it finds nothing where there is nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway import cli
from gateway.scripts.check import Transform, check, importable_names, is_importable
from gateway.scripts.signature import TABLE_TYPES
from transform_shim.job.signature import _FRAME_KINDS

GOOD = """
import numpy as np
import pandas as pd
from typing import TYPE_CHECKING, Annotated, Optional

import common

if TYPE_CHECKING:
    import duckdb_of_nobody
try:
    import ujson_of_nobody as json
except ImportError:
    import json

LIMIT = 3

class Helper:
    size: int = LIMIT
    def __init__(self):
        self.rows = [row for row in range(LIMIT)]
    def kind(self):
        return __class__.__name__

def each(values):
    yield from values

def transform(orders: "pd.DataFrame", customers: Optional[pd.DataFrame] = None, *, days: int = 7) -> pd.DataFrame:
    global seen
    seen = Helper().rows
    if customers is None:
        return orders.head(common.RATE)
    return orders.merge(customers).pipe(lambda frame: frame[[c for c in frame if c != np.nan]])

if __name__ == "__main__":
    print(transform(pd.read_csv("orders.csv")))
"""


def found(source: str, tables: Sequence[str] | None = None, **modules: str) -> list[str]:
    """Return ``line severity code`` of each finding."""
    library = {name: (f"{name}.py", text) for name, text in modules.items()}
    report = check(Transform("script.py", source, library), tables)
    return [f"{f.line} {f.severity} {f.code}" for f in report.findings]


def test_mark_of_the_encoding_is_no_fault() -> None:
    assert found("\ufeffdef transform(orders):\n    return orders", ["orders"]) == []


def test_a_valid_script_has_no_errors() -> None:
    report = check(Transform("script.py", GOOD, {"common": ("common.py", "RATE = 1\n")}), ["orders"])
    assert [str(f) for f in report.findings] == [
        "script.py:11: warning: imports ujson_of_nobody, which is not installed for jobs [user_error]"
    ]
    assert report.needs == ("orders",)
    assert not report.has_errors


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def transform(:\n    pass", ["1 error syntax_error"]),
        ("x = 1\nreturn x", ["2 error syntax_error"]),
        ("x = 1", ["1 error no_transform"]),
        ("def transfrom():\n    return 1 + 1", ["1 error no_transform"]),
        ("def f():\n    def transform():\n        return f()\n    return transform()", ["1 error no_transform"]),
        ("if __name__ == '__main__':\n    def transform():\n        return {}", ["1 error no_transform"]),
        ("transform = 5", ["1 error no_transform"]),
        ("\nasync def transform():\n    return {}", ["2 error no_transform"]),
        ("def transform():\n    for x in 'ab':\n        yield x", ["3 error no_transform"]),
        ("def transform(a, /):\n    return a", ["1 error no_transform"]),
        ("def transform(a=1, /):\n    return a", []),
        ("def transform():\n    x = {}", ["1 error invalid_return"]),
        ("def transform():\n    def inner():\n        return {}\n    inner()", ["1 error invalid_return"]),
        ("def transform():\n    return", ["2 error invalid_return"]),
        ("def transform():\n    if 1:\n        return None\n    return {}", ["3 error invalid_return"]),
        ("def transform():\n    raise ValueError", []),
        ("def transform():\n    return [x for x in 'ab']\n", []),
        ("def f(a):\n    return a\ntransform = f", []),
        ("transform = lambda: {}", []),
        ("transform, x = (lambda: {}), 1", []),
        ("def transform(a, /):\n    return a\n(x, [transform, *_]) = 1, [lambda: {}]", []),
        ("if (transform := (lambda: {})):\n    pass", []),
        ("for transform in [lambda: {}]:\n    pass", []),
        ("def f():\n    global transform\n    transform = lambda: {}\nf()", []),
        ("def f():\n    transform = lambda: {}\n    return transform\nf().x = 1", ["1 error no_transform"]),
        ("from math import sqrt as transform", []),
        ("def transform():\n    return pd.DataFrame()", ["2 error user_error"]),
        ("from math import *\ndef transform():\n    return pi", []),
        ("def transform():\n    from panda import x\n    return x", ["2 error user_error"]),
        ("from . import common\ndef transform():\n    return common", ["1 error user_error"]),
        ("import os.path, xml.dom\ndef transform():\n    return os", []),
    ],
)  # fmt: skip
def test_each_fault_is_found_at_its_line(source: str, expected: list[str]) -> None:
    assert found(source) == expected


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("print(late)\nlate = 1", ["late"]),
        ("def f():\n    return late\nlate = f", []),
        ("import os\ndel os\nprint(os)", ["os"]),
        ("class A:\n    size = 1\n    def of(self):\n        return size", ["size"]),
        ("try:\n    given\nexcept NameError:\n    given = 1", []),
        ("def f(x: 'Absent', y: list['Absent']) -> 'Absent':\n    return x", []),
        ("from __future__ import annotations\ndef f(x: Absent) -> Absent:\n    return x", []),
        ("def f(x: Absent):\n    return x", ["Absent"]),
        ("print(__spec__, __loader__, __package__, __file__, __name__, __builtins__, __annotations__, __doc__, display)", []),
        ("exec('given = 1')\nprint(given)", []),
        ("print(" + " + ".join(["absent"] * 900) + ")", []),
    ],
)  # fmt: skip
def test_name_is_undefined_where_python_would_not_find_it(lines: str, names: list[str]) -> None:
    source = f"{lines}\ndef transform():\n    return {{}}"
    texts = [finding.message for finding in check(Transform("script.py", source), None).findings]
    assert texts == [f"the name '{name}' is not defined" for name in names]


@pytest.mark.parametrize(
    ("signature", "tables", "expected"),
    [
        ("orders", ["orders"], []),
        ("orders, customers", ["orders"], ["1 error missing_table"]),
        ("orders, customers=None", ["orders"], []),
        ("orders, *, customers", ["orders"], ["1 error missing_table"]),
        ("orders", ["orders", "customers"], ["1 warning missing_table"]),
        ("**tables", ["orders", "customers"], []),
        ("orders, *rest", ["orders"], []),
        ("orders: list", ["orders"], ["1 warning user_error"]),
        ("orders: 'pandas.DataFrame | None'", ["orders"], []),
        ("orders: 'duckdb.DuckDBPyRelation', days: int = 3", ["orders"], []),
    ],
)
def test_tables_and_parameters_are_held_against_each_other(
    signature: str, tables: list[str], expected: list[str]
) -> None:
    assert found(f"def transform({signature}):\n    return {{}}", tables) == expected


def test_messages_list_the_tables_and_suggest_a_name() -> None:
    source = "import panda\ndef transform(order):\n    return order"
    texts = [f.message for f in check(Transform("script.py", source), ["orders", "customers"]).findings]
    assert texts == [
        "imports panda, which is not installed for jobs; did you mean pandas?",
        "parameter 'order' has no table; there are: orders, customers. Did you mean 'orders'?",
        "no parameter of transform() takes the table 'orders'; did you mean 'order'?",
        "no parameter of transform() takes the table 'customers'",
    ]


def test_library_is_looked_at_and_counts_as_there() -> None:
    good = "import common\ndef transform():\n    return common.x()"
    assert found(good, common="def x():\n    return 1") == []
    assert found(good, common="def x(:\n    return 1") == ["1 error syntax_error"]
    assert found(good, common="import nope\nimport other\n", other="") == ["1 error user_error"]
    assert found("def transform():\n    return {}", json="") == ["1 error bad_request"]


def test_annotations_and_imports_are_those_of_the_kernel() -> None:
    assert {name.partition(".")[::2] for name in TABLE_TYPES} == set(_FRAME_KINDS)
    assert {"pandas", "pyarrow", "numpy", "polars", "duckdb"} <= set(importable_names())
    assert all(is_importable(name) for name in importable_names() if name in {"pandas", "pyarrow", "polars", "IPython"})
    assert not is_importable("nothing_of_this_name")


def test_command_prints_file_line_and_missing_packages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "script.py").write_text(
        "import common\nimport nope\n\ndef transform(orders):\n    return common.f(orders)\n"
    )
    (tmp_path / "common.py").write_text("def f(x):\n    return x\n")
    (tmp_path / "orders.csv").write_text("a\n1\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", "script.py", "--table", "orders=orders.csv"]) == 1
    printed = capsys.readouterr().out
    assert "script.py:1: error: common.py is in the directory of script.py" in printed
    assert "--library" in printed
    assert "script.py:2: error: imports nope, which is not installed for jobs" in printed
    assert "pandas" in printed.partition("installed for jobs")[2]
    (tmp_path / "script.py").write_text("import common\ndef transform(orders):\n    return common.f(orders)\n")
    assert cli.main(["check", "script.py", "--library", "common.py"]) == 0
    assert capsys.readouterr().out == "script.py: no problems found; it needs the tables orders\n"
    assert cli.main(["check", "absent.py"]) == 2
