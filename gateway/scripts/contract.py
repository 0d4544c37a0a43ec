"""The output contract in the file beside a script or a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["contract_path", "read_contract"]


def contract_path(path: Path) -> Path:
    """Return the path of a script's or table's contract, which need not exist."""
    return path.with_suffix(".schema.yaml")


def read_contract(path: Path) -> dict[str, Any] | None:
    """Return the contract as a JSON object, or None if there is no file.

    Raises
    ------
    ValueError
        The file is not valid UTF-8 or YAML, or has no object.
    OSError
        The file cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    import yaml  # only where there is a contract

    try:
        value = yaml.safe_load(content.decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict) or not isinstance(value.get("columns"), dict):
        raise ValueError(f"{path}: expected `columns:` with the rules of each column")
    # YAML has dates, and JSON has their text
    return dict(json.loads(json.dumps(value, default=str)))
