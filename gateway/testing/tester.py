"""Run a transform in a test: the script with its contract and modules, tables with their types."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gateway.client.client import TransformClient
from gateway.client.result import TransformResult
from gateway.client.tables import Frame
from gateway.scripts.contract import contract_path, read_contract

__all__ = ["TransformTester"]

#: The Metabase type of a column by the type in a contract.
_BASE_TYPES = {
    "integer": "type/Integer",
    "number": "type/Float",
    "text": "type/Text",
    "boolean": "type/Boolean",
    "date": "type/Date",
    "datetime": "type/DateTime",
    "time": "type/Time",
}


class TransformTester:
    """Runs transforms on a gateway.

    Parameters
    ----------
    client : TransformClient
        Of the gateway.
    """

    def __init__(self, client: TransformClient) -> None:
        self.client = client

    def run(
        self,
        script: str | Path,
        tables: Mapping[str, str | Path | Frame] | None = None,
        *,
        library: Iterable[Path] = (),
        manifests: Mapping[str, str | Path | Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> TransformResult:
        """Run a transform and return its result.

        Parameters
        ----------
        script : str or Path
            The source, or its file; the contract beside the file (``NAME.schema.yaml``) must hold.
        tables : mapping, optional
            Parameter name to a data frame, or to a file. Beside a file, ``NAME.manifest.json`` or
            ``NAME.schema.yaml`` has the types of its columns.
        library : iterable of Path, optional
            Files of the modules that the script imports.
        manifests : mapping, optional
            Parameter name to a manifest, for tables without a file of types.
        **options
            Further ones of `TransformClient.run`.

        Returns
        -------
        TransformResult

        Raises
        ------
        TransformFailed
            The job ran and failed; `gateway.client.failures` has a subclass for each code.
        ValueError
            A contract cannot be read.
        """
        if isinstance(script, Path) and "output_schema" not in options:
            options["output_schema"] = read_contract(contract_path(script))
        found = {
            name: _types_of(Path(table)) for name, table in (tables or {}).items() if isinstance(table, str | Path)
        }
        typed = {name: types for name, types in found.items() if types is not None}
        sources = {path.name: path.read_text(encoding="utf-8") for path in library}
        return self.client.run(script, tables, library=sources, manifests={**typed, **(manifests or {})}, **options)


def _types_of(table: Path) -> Mapping[str, Any] | None:
    """Return the manifest of a table's file, or one made of its contract."""
    manifest = table.with_suffix(".manifest.json")
    if manifest.is_file():
        return dict(json.loads(manifest.read_bytes()))
    contract = read_contract(contract_path(table))
    if contract is None:
        return None
    fields = [
        {"name": name, "base_type": _base_type(f"{contract_path(table)}: columns[{name!r}]", rules)}
        for name, rules in contract["columns"].items()
    ]
    return {"fields": fields}


def _base_type(where: str, rules: object) -> str | None:
    kind = rules.get("type") if isinstance(rules, Mapping) else rules
    if kind is not None and kind not in _BASE_TYPES:
        raise ValueError(f"{where}: expected a type of {', '.join(_BASE_TYPES)}, not {kind!r}")
    return None if kind is None else _BASE_TYPES[kind]
