"""A bundle as files: the script, its modules, its tables and their manifests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.client.client import TransformClient
from gateway.core.formats import FORMATS, PACKED_ENDINGS
from gateway.scripts.contract import contract_path

_ENDING_OF_COMPRESSION = {compression: ending for ending, compression in PACKED_ENDINGS.items()}


@dataclass(frozen=True, slots=True)
class BundledFiles:
    """The files of one table.

    Attributes
    ----------
    data_path : Path
    manifest_path : Path or None
    is_whole : bool
        Whether they have all rows of the table.
    """

    data_path: Path
    manifest_path: Path | None
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class BundledTables:
    """The tables of a bundle by name.

    Attributes
    ----------
    files : dict
        Files of the tables whose data is there.
    missing : list of dict
        Descriptions, from the bundle, of the tables that transform() takes and whose data is not there.
    """

    files: dict[str, BundledFiles] = field(default_factory=dict)
    missing: list[dict[str, Any]] = field(default_factory=list)


def fetch_tables(
    client: TransformClient,
    bundle: Mapping[str, Any],
    directory: Path,
    given: Mapping[str, Path],
    *,
    takes_first_rows: bool,
) -> BundledTables:
    """Write the tables of a bundle into a directory, which is made for the first of them.

    A file of `given` replaces the bundle's data. Without `takes_first_rows`, a table of which the bundle has only the
    first rows counts as missing.
    """
    found = BundledTables()
    for number, table in enumerate(bundle["tables"]):
        name, is_whole = table["name"], table["kept"] == "whole"
        stem = name if name.isidentifier() else f"table-{number}"
        if name in given:
            data_path, is_whole = given[name], True
        elif is_whole or (takes_first_rows and table["kept"] == "first_rows"):
            directory.mkdir(exist_ok=True)
            ending = FORMATS[table["data_format"]].endings[0]
            data_path = directory / f"{stem}{ending}{_ENDING_OF_COMPRESSION.get(table['compression'], '')}"
            client.fetch_bundled_table(bundle["job_id"], name, data_path)
        elif table["used"]:
            found.missing.append(table)
            continue
        else:
            continue
        manifest_path = None
        if table["manifest"] is not None:
            directory.mkdir(exist_ok=True)
            manifest_path = directory / f"{stem}.manifest.json"
            manifest_path.write_text(json.dumps(table["manifest"], indent=1), encoding="utf-8")
        found.files[name] = BundledFiles(data_path, manifest_path, is_whole)
    return found


def write_script(bundle: Mapping[str, Any], directory: Path) -> tuple[Path, list[Path]]:
    """Write the script, its contract and its modules; return the paths of the script and the modules."""
    script = directory / "script.py"
    script.write_text(bundle["code"], encoding="utf-8", newline="")
    if bundle["output_schema"] is not None:
        contract_path(script).write_text(json.dumps(bundle["output_schema"]), encoding="utf-8")  # JSON is YAML
    library = directory / "library"
    library.mkdir()
    modules = [library / f"{name}.py" for name in bundle["library"]]
    for module, source in zip(modules, bundle["library"].values(), strict=True):
        module.write_text(source, encoding="utf-8", newline="")
    return script, modules


def described(table: Mapping[str, Any]) -> str:
    """Return why a table is missing, and its id in Metabase."""
    size = table["bytes"]
    reason = "was not fetched" if size is None else f"has {size:,} bytes, which is too large for the bundle"
    more = ", which has its first rows" if table["kept"] == "first_rows" else ""
    place = f"; it is table {table['table_id']} of Metabase" if table["table_id"] is not None else ""
    return f"{reason}{more}{place}"


def version_differences(bundle: Mapping[str, Any], here: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """Return the packages among `names` whose version differs between the failed job and `here`."""
    there = bundle["packages"]
    return [
        f"{name} {there[name]}, here {here.get(name, 'missing')}"
        for name in sorted(there)
        if name.lower().replace("-", "_") in names and there[name] != here.get(name)
    ]
