"""The page on upgrading tells how scripts behave on the installed pandas."""

from __future__ import annotations

import builtins
import re
import warnings
from pathlib import Path

import pandas as pd
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "upgrading.md"
SECTION = PAGE.read_text().partition("## From pandas 2 to pandas 3\n")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| `([^`]+)` \|$", SECTION, re.MULTILINE)


def effect(code: str) -> str:
    """Return what the code makes of the page's frame: its value, and the frame afterwards."""
    df = pd.DataFrame({"t": ["a", "a", "b"], "n": [1.0, None, 3.0], "d": ["2024-01-15", "2024-01-16", "2024-02-01"]})
    names = {"df": df, "pd": pd}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = eval(code, names)
        except SyntaxError:  # a statement
            value = exec(code, names)
    return repr((value, df))


def test_every_row_of_the_table_is_run() -> None:
    lines = [line for line in SECTION.splitlines() if line.startswith("| `")]
    assert len(ROWS) == len(lines) >= 9


@pytest.mark.parametrize(("old", "outcome", "new"), ROWS)
def test_replacement_has_the_effect_of_the_old_code_on_pandas_2(old: str, outcome: str, new: str) -> None:
    if pd.__version__.startswith("2."):
        assert effect(old) == effect(new)
    elif error := re.match(r"`(\w+Error)`", outcome):
        with pytest.raises(getattr(builtins, error[1])):
            effect(old)
        assert effect(new)
    else:
        assert effect(old) != effect(new)
