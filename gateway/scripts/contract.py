"""The output contract in the file beside a script or a table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

__all__ = ["contract_path", "read_contract"]

_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")


def contract_path(path: Path) -> Path:
    """Return the path of a script's or table's contract, which need not exist."""
    return path.with_suffix(".schema.yaml")


def read_contract(path: Path) -> dict[str, Any] | None:
    """Return the contract as a JSON object, or None if there is no file.

    Raises
    ------
    ValueError
        The file is not valid UTF-8 or YAML, has no object, or a name of a column that is none in YAML, such as ``no``.
    OSError
        The file cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    import yaml  # only where there is a contract

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # it has no types
        """Takes 1e16 for a number, as JSON and YAML 1.2 do; PyYAML takes it for text."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
    try:
        value = Loader(content.decode()).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict) or not isinstance(value.get("columns"), dict):
        raise ValueError(f"{path}: expected `columns:` with the rules of each column")
    for name in value["columns"]:
        if not isinstance(name, str) and type(name) is not int:
            raise ValueError(f"{path}: columns: YAML takes a name for {name!r}; put it in quotes")
    # YAML has dates, and JSON has their text
    return dict(json.loads(json.dumps(value, default=str)))
