"""An example project: a transform, its contract, a module, a table, a test, and the same as a notebook."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCRIPT = '''"""Sums what customers paid by month. Replace it with your own transform."""

import pandas as pd
from months import month_of


def transform(orders: pd.DataFrame) -> pd.DataFrame:
    """Return one row per month. Each parameter names a table, and print() writes to the job's log."""
    paid = orders[orders["status"] == "paid"]
    print(f"{len(paid)} of {len(orders)} orders are paid")
    by_month = paid.groupby(month_of(paid["ordered_at"]))["amount"]
    return by_month.agg(orders="size", total="sum").reset_index()
'''

LIBRARY = '''"""A module of the transform. Metabase keeps such modules as its Python library."""

import pandas as pd


def month_of(moments: pd.Series) -> pd.Series:
    """Return the months as texts such as 2025-01."""
    return moments.dt.strftime("%Y-%m").rename("month")
'''

CONTRACT = """\
# The columns that the result must have; a result that breaks a rule is not published.
columns:
  month: {type: text, nullable: false, unique: true}
  orders: {type: integer, min: 1}
  total: {type: number, min: 0}
"""

TABLE = """\
order_id,ordered_at,status,amount
1,2025-01-03,paid,10.50
2,2025-01-19,paid,4.50
3,2025-01-31,open,99.00
4,2025-02-02,paid,7.25
"""

TABLE_CONTRACT = """\
# The types of the table's columns, in its order.
columns:
  order_id: {type: integer}
  ordered_at: {type: datetime}
  status: {type: text}
  amount: {type: number}
"""

TEST = '''"""Runs monthly_totals.py as production does: in the sandbox, with its limits, errors and contract."""

from pathlib import Path

import pandas as pd
import pytest
from gateway.client import failures
from gateway.testing import assert_frame

HERE = Path(__file__).parent
SCRIPT = HERE / "monthly_totals.py"
LIBRARY = [HERE / "months.py"]


def test_sums_the_paid_orders_by_month(transform_gateway):
    result = transform_gateway.run(SCRIPT, {"orders": HERE / "tables/orders.csv"}, library=LIBRARY)
    expected = {"month": ["2025-01", "2025-02"], "orders": [2, 1], "total": [15.0, 7.25]}
    assert_frame(result, expected, key=["month"])
    assert result.log[0].message == "3 of 4 orders are paid"


def orders(amount: float) -> pd.DataFrame:
    """Return a table of one order, which needs no file."""
    ordered_at = pd.to_datetime(["2025-03-01"])
    return pd.DataFrame({"order_id": [1], "ordered_at": ordered_at, "status": ["paid"], "amount": [amount]})


def test_refuses_a_negative_total(transform_gateway):
    with pytest.raises(failures.OutputSchemaViolated, match="column \'total\': min 0"):
        transform_gateway.run(SCRIPT, {"orders": orders(-1.0)}, library=LIBRARY)


def test_without_paid_orders_there_is_nothing(transform_gateway):
    unpaid = orders(1.0).assign(status="open")
    result = transform_gateway.run(SCRIPT, {"orders": unpaid}, library=LIBRARY)
    assert result.frame().empty
'''

README = """\
# Monthly totals

    transform-gateway check monthly_totals.py --table orders=tables/orders.csv --library months.py
    transform-gateway run monthly_totals.py --table orders=tables/orders.csv --library months.py
    pytest

`pytest` needs pytest in the environment of transform-gateway.
`monthly_totals.ipynb` runs on the kernel `transform`.
"""


def notebook_text(cells: Sequence[tuple[str, str]]) -> str:
    """Return a notebook of the kernel `transform`, of cells that are ``markdown`` or ``code`` with their source."""

    def cell(kind: str, source: str, number: int) -> dict[str, Any]:
        common = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source}
        return common if kind == "markdown" else {**common, "execution_count": None, "outputs": []}

    value = {
        "cells": [cell(kind, source, number) for number, (kind, source) in enumerate(cells)],
        "metadata": {
            "kernelspec": {"display_name": "Transform (sandboxed)", "language": "python", "name": "transform"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(value, indent=1) + "\n"


def _notebook() -> str:
    return notebook_text(
        (
            ("markdown", "# Monthly totals\n\nThe cell below `%%transform` is the complete script."),
            ("code", "%table orders tables/orders.csv"),
            ("code", f"%%library months\n{LIBRARY}".rstrip()),
            ("code", f"%%transform\n{SCRIPT}".rstrip()),
        )
    )


def write_project(directory: Path) -> list[Path]:
    """Write the project into a directory, which is made, and return the paths; all files are written or none.

    Raises
    ------
    FileExistsError
        One of the files already exists.
    OSError
        The directory cannot be made, or a file not be written.
    """
    texts = {
        "monthly_totals.py": SCRIPT,
        "monthly_totals.schema.yaml": CONTRACT,
        "months.py": LIBRARY,
        "tables/orders.csv": TABLE,
        "tables/orders.schema.yaml": TABLE_CONTRACT,
        "test_monthly_totals.py": TEST,
        "monthly_totals.ipynb": _notebook(),
        "README.md": README,
    }
    for name in texts:
        if (directory / name).exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(directory / name))
    written: list[Path] = []
    (directory / "tables").mkdir(parents=True, exist_ok=True)
    try:
        for name, text in texts.items():
            with (directory / name).open("x", encoding="utf-8") as file:
                written.append(directory / name)
                file.write(text)
    except BaseException:
        for path in written:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        raise
    return written
