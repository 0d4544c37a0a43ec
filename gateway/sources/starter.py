"""A transform to begin with: a script, a table to try it on, and a test that runs it as production would."""

from __future__ import annotations

import contextlib
import keyword
from pathlib import Path

SCRIPT = '''"""What customers paid, by month. Replace this by what you want to know.

Try it:    transform-gateway run {name}.py --table orders={name}_orders.csv
Check it:  transform-gateway check {name}.py --table orders={name}_orders.csv
Test it:   pytest test_{name}.py
"""

import pandas as pd


def transform(orders: pd.DataFrame) -> pd.DataFrame:
    """Each parameter names a table; the returned frame becomes one. What is printed goes to the log."""
    paid = orders[orders["status"] == "paid"]
    print(f"{{len(paid)}} of {{len(orders)}} orders are paid")
    month = pd.to_datetime(paid["ordered_at"]).dt.strftime("%Y-%m")
    return paid.groupby(month.rename("month"))["amount"].agg(["size", "sum"]).reset_index()
'''

TABLE = """\
order_id,ordered_at,status,amount
1,2025-01-03,paid,10.50
2,2025-01-19,paid,4.50
3,2025-01-31,open,99.00
4,2025-02-02,paid,7.25
"""

TEST = '''"""Runs {name}.py in a kernel like those of production: same limits, same errors. `pytest test_{name}.py`"""

import csv
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run(orders: Path, out: Path) -> list[dict[str, str]]:
    """Run the transform and return its rows; a transform that fails fails the test with its traceback."""
    command = [sys.executable, "-P", "-m", "gateway", "run", str(HERE / "{name}.py")]
    command += ["--table", f"orders={{orders}}", "--out", str(out), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def test_sums_what_was_paid_by_month(tmp_path):
    rows = run(HERE / "{name}_orders.csv", tmp_path / "out.csv")
    found = [(row["month"], int(row["size"]), float(row["sum"])) for row in rows]
    assert found == [("2025-01", 2, 15.0), ("2025-02", 1, 7.25)]


def test_without_orders_there_is_nothing(tmp_path):
    empty = tmp_path / "orders.csv"
    empty.write_text("order_id,ordered_at,status,amount\\n")
    assert run(empty, tmp_path / "out.csv") == []
'''


def write_starter(directory: Path, name: str) -> list[Path]:
    """Write ``NAME.py``, ``NAME_orders.csv`` and ``test_NAME.py``; all of them or nothing.

    Raises
    ------
    ValueError
        The name is no module name.
    FileExistsError
        One of them is there already.
    """
    if keyword.iskeyword(name):
        raise ValueError(f"{name!r} is a word of Python's own, so nobody could import a script of that name")
    if not name.isidentifier() or not name.isascii():
        raise ValueError(f"{name!r} is not a name for a script: expected letters, digits and _, and no path")
    texts = {
        directory / f"{name}.py": SCRIPT.format(name=name),
        directory / f"{name}_orders.csv": TABLE,
        directory / f"test_{name}.py": TEST.format(name=name),
    }
    written: list[Path] = []
    try:
        for path, text in texts.items():
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except BaseException:
        for path in written:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        raise
    return written
