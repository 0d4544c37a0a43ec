"""The job request inside the kernel: one JSON object, parsed once into values.

The gateway's side of the same contract is `gateway.local.job_request`. Neither side imports the other; a contract test
feeds the bytes of the one to the parser of the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from transform_shim.core.formats import DataFormat, data_format
from transform_shim.core.table_file import TableFile
from transform_shim.writing.object_columns import MixedColumns

__all__ = ["REQUEST_VERSION", "JobRequest"]

#: The only version of a request that this code reads.
REQUEST_VERSION = 1


@dataclass(frozen=True, slots=True)
class JobRequest:
    """Everything that one job needs; all paths are absolute.

    Attributes
    ----------
    code : str
        Source of the script; see `sources`.
    output_path, manifest_path, result_path : Path
        Files that the job writes.
    displays_path : Path or None
        File for what the job displays; None leaves its displays to IPython.
    work_dir : Path
        Directory for the script and its modules; the job's working directory.
    library : mapping of str to str
        Source of each module by its name; see `sources`.
    sources_path : Path or None
        File with script and library, if they are too large for the request.
    tables : tuple of TableFile
        Input tables.
    unfetched : tuple of str
        Aliases of tables that were not fetched, because the text of the script does not name them.
    output_format : DataFormat
        Format of the output.
    limits : mapping of str to int
        Limits that failure messages name.
    hold : bool
        Whether the kernel may be kept if the job fails, so that the objects of the failure must stay alive.
    mixed_columns : {'text', 'error'}
        The treatment of an output column of objects with values of several types.
    official_compatibility : bool
        Whether floats have ten decimals and a traceback starts with the runner's own frame, as in the official runner.
    output_schema : str or None
        The output contract of the request as JSON.
    profile : bool
        Whether the columns of the result are profiled, into the file of displays.
    checksum : bool
        Whether the result names the SHA-256 of the output.
    """

    code: str
    output_path: Path
    manifest_path: Path
    result_path: Path
    work_dir: Path
    displays_path: Path | None = None
    library: Mapping[str, str] = field(default_factory=dict)
    sources_path: Path | None = None
    tables: tuple[TableFile, ...] = ()
    unfetched: tuple[str, ...] = ()
    output_format: DataFormat = "jsonl"
    limits: Mapping[str, int] = field(default_factory=dict)
    hold: bool = False
    mixed_columns: MixedColumns = "text"
    official_compatibility: bool = False
    output_schema: str | None = None
    profile: bool = False
    checksum: bool = True

    @classmethod
    def from_json(cls, text: str) -> JobRequest:
        """Parse a request; the gateway has validated what came from outside.

        Parameters
        ----------
        text : str
            One JSON object.

        Returns
        -------
        JobRequest
            The request as values.

        Raises
        ------
        ValueError, KeyError
            If the text is not a request of this version.
        """
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("the request is not an object")
        if value.get("version") != REQUEST_VERSION:
            raise ValueError(f"unknown request version {value.get('version')!r}")
        unknown = sorted(value.keys() - {entry.name for entry in fields(cls)} - {"version"})
        if unknown:
            raise ValueError(f"unknown members of the request: {', '.join(unknown)}")
        return cls(
            code=value.get("code") or "",
            library=dict(value.get("library") or {}),
            sources_path=Path(value["sources_path"]) if value.get("sources_path") else None,
            tables=tuple(TableFile.from_json(entry) for entry in value.get("tables") or ()),
            unfetched=tuple(value.get("unfetched") or ()),
            output_format=data_format(value.get("output_format") or "jsonl"),
            output_path=Path(value["output_path"]),
            manifest_path=Path(value["manifest_path"]),
            result_path=Path(value["result_path"]),
            work_dir=Path(value["work_dir"]),
            displays_path=Path(value["displays_path"]) if value.get("displays_path") else None,
            limits=dict(value.get("limits") or {}),
            hold=bool(value.get("hold")),
            mixed_columns="error" if value.get("mixed_columns") == "error" else "text",
            official_compatibility=bool(value.get("official_compatibility")),
            output_schema=value.get("output_schema"),
            profile=bool(value.get("profile")),
            checksum=bool(value.get("checksum", True)),
        )

    def sources(self) -> tuple[str, Mapping[str, str]]:
        """Return the sources of the script and of the library's modules, from their file if they have one.

        Returns
        -------
        tuple of str and mapping of str to str
            The script, and each module by its name.
        """
        if self.sources_path is None:
            return self.code, self.library
        sources = json.loads(self.sources_path.read_bytes())
        return sources["code"], sources["library"]
