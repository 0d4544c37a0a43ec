"""A contract in a file has the values that its JSON or YAML says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.scripts.contract import read_contract


def test_a_contract_written_as_json_is_read_as_it_was(tmp_path: Path) -> None:
    """As `replay` writes that of a failed job."""
    path = tmp_path / "script.schema.yaml"
    rules = {"type": "number", "nullable": False, "min": -1e16, "max": 1e300}
    contract = {"columns": {"x": rules, "no": {"max": 1e-7}, "1": {}, "\N{GRINNING FACE}\u2028": {}}}
    path.write_text(json.dumps(contract))
    assert read_contract(path) == contract


def test_a_contract_written_as_yaml_has_numbers_and_names(tmp_path: Path) -> None:
    path = tmp_path / "script.schema.yaml"
    path.write_text("columns:\n  x: {min: -1.5E-3, max: 1e6}\n  2024: {min: 2024-01-31}\n  t: {type: '1e6'}\n")
    columns = {"x": {"min": -0.0015, "max": 1e6}, "2024": {"min": "2024-01-31"}, "t": {"type": "1e6"}}
    assert read_contract(path) == {"columns": columns}
    for name, taken in (("no", "False"), ("2024-01-31", "datetime.date"), ("~", "None")):
        path.write_text(f"columns:\n  {name}: {{}}\n")
        with pytest.raises(ValueError, match=f"YAML takes a name for {taken}.*; put it in quotes"):
            read_contract(path)
