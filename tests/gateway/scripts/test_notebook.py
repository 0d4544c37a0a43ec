"""The transform of a notebook: which cell, without what, and that it runs and is checked like a script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway import cli
from gateway.scripts.notebook import plain_python, read_notebook
from tests.support.gateway_process import GatewayProcess

CELLS = (
    "import pandas as pd\nfactor = 2",
    "%%library common.py\n\nRATE = 3\n%matplotlib inline",
    "def transform(orders):\n    return orders",
    "%%bash\ndef transform(): no",
    "%%transform --timeout 5\n%load_ext x\nimport common\n\ndef transform(orders):\n    !ls\n    return orders.assign(amount=orders['amount']\n        % common.RATE)\n",
    "factor?\ntransform_me = 1",
)


def notebook(path: Path, *cells: str) -> Path:
    made = [
        {"cell_type": "code", "source": cell.splitlines(keepends=True), "metadata": {}, "outputs": []} for cell in cells
    ]
    made.insert(1, {"cell_type": "markdown", "source": "def transform(): in words", "metadata": {}})
    path.write_text(json.dumps({"cells": made, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}))
    return path


def test_last_cell_that_defines_it_is_the_script_and_keeps_its_line_numbers(tmp_path: Path) -> None:
    found = read_notebook(notebook(tmp_path / "n.ipynb", *CELLS))
    assert found.script is not None
    assert found.script.number == 6
    lines = found.script.code.split("\n")
    assert lines[:6] == ["", "", "import common", "", "def transform(orders):", "    pass"]
    assert lines[7] == "        % common.RATE)", "an operator at the beginning of a line is no magic"
    assert list(found.library) == ["common"]
    assert found.library["common"].code == "\n\nRATE = 3\n"


def test_invalid_python_is_left_unchanged() -> None:
    assert plain_python("x = (\n%%") == "x = (\n%%"
    assert plain_python("def f(:\n  pass") == "def f(:\n  pass"


def test_broken_cell_is_still_found_as_the_script(tmp_path: Path) -> None:
    found = read_notebook(notebook(tmp_path / "n.ipynb", "def transform():\n    return 1 +"))
    assert found.script is not None


@pytest.mark.parametrize("content", ["", "[]", '{"worksheets": []}', '{"cells": [{}]}'])
def test_file_that_is_not_a_notebook_is_refused(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "n.ipynb"
    path.write_text(content)
    assert cli.main(["check", str(path)]) == 2
    assert "not a notebook" in capsys.readouterr().err


def test_check_names_the_cell_and_where_a_forgotten_name_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = notebook(tmp_path / "n.ipynb", "import pandas as pd", "%%time\ndef transform():\n    return pd.DataFrame()")
    assert cli.main(["check", str(path)]) == 1
    expected = f"{path}:cell 3:3: error: the name 'pd' is not defined; it is defined in cell 1, which is not part of the script"
    assert expected in capsys.readouterr().out
    assert cli.main(["check", str(notebook(path, "x = 1"))]) == 1
    assert "no cell defines transform()" in capsys.readouterr().out


def test_run_takes_a_notebook(
    running_gateway: GatewayProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = notebook(tmp_path / "n.ipynb", *CELLS)
    (tmp_path / "orders.csv").write_text("amount\n10\n4\n")
    options = ["--table", f"orders={tmp_path}/orders.csv", "--out", str(tmp_path / "out.csv"), "--quiet"]
    gateway = ["--url", running_gateway.url, "--token", running_gateway.token]
    code = cli.main(["run", str(path), *options, *gateway])
    assert code == 0, capsys.readouterr().err
    assert (tmp_path / "out.csv").read_text() == "amount\n1\n1\n"
    notebook(path, "def transform(orders):\n\n    return orders.nothing")
    assert cli.main(["run", str(path), *options, *gateway, "--hold", "1"]) == 1
    said = capsys.readouterr().err
    assert "line 3, in transform" in said
    assert "its kernel is held: " in said
    running_gateway.release_all()
