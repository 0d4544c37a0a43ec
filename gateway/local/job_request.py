"""The job request: all data that the gateway sends to the code inside a kernel, and the calls that carry it.

The kernel's side of the same contract is `transform_shim.job.request`. The two are on different sides of the trust
line and neither imports the other; `tests/gateway/local/test_job_contract.py` feeds the bytes of the one to the parser
of the other, and checks that the functions that are called here exist under these names.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
from msgspec import structs

from gateway.core.async_files import create_file
from gateway.core.formats import DataFormat
from gateway.core.job import LibraryModule
from gateway.storage import FetchedTable
from kernel_spec.protocol.limits import Limits

#: The version of the request that this code writes.
REQUEST_VERSION = 1

#: Code of the ``execute_request`` that runs a job: calls `transform_shim.job.run.run_job` with the request as JSON.
RUN_CODE = "import transform_shim.job.run; transform_shim.job.run.run_job({request!r})"

#: Code that gives the console of a held kernel its names: calls `transform_shim.job.post_mortem.namespace`.
PRESENT_CODE = (
    "import transform_shim.job.post_mortem; globals().update(transform_shim.job.post_mortem.namespace({marker_path!r}))"
)

#: Longer sources go to the kernel as a file: IPython needs 60 µs for each KiB of a cell (measured), and with tens of
#: megabytes it runs out of memory before the job has begun.
SOURCES_IN_REQUEST_CHARACTERS = 4096
SOURCES_FILE = "sources.json"

#: Names of the files that a job writes into its output directory.
OUTPUT_FILE = "output"
MANIFEST_FILE = "output-manifest.json"
RESULT_FILE = "result.json"
DISPLAYS_FILE = "displays.jsonl"


@dataclass(frozen=True, slots=True)
class OutputRules:
    """The settings that decide how the output and a failure are written.

    Attributes
    ----------
    mixed_columns : {'text', 'error'}
        The treatment of an output column of objects with values of several types.
    official_compatibility : bool
        Whether floats have ten decimals and a traceback starts with the runner's own frame, as in the official runner.
    """

    mixed_columns: str = "text"
    official_compatibility: bool = False


@dataclass(frozen=True, slots=True)
class JobRequest:
    """One job, in the form for the code inside the kernel.

    Attributes
    ----------
    code : str
        Source of the script.
    library : tuple of LibraryModule
        Modules beside the script.
    tables : tuple of FetchedTable
        Input tables, with paths that the kernel can read.
    output_format : DataFormat
        Format of the output.
    out_dir : Path
        Directory for output, manifest, result and displays.
    work_dir : Path
        Directory for the script and its modules; the job's working directory.
    limits : Limits
        Limits that failure messages name.
    hold : bool
        Whether the kernel may be kept if the job fails, so that the objects of the failure must stay alive.
    rules : OutputRules
        How the output and a failure are written.
    unfetched : tuple of str
        Aliases of tables that were not fetched, because the text of the script does not name them.
    sources_path : Path or None
        File with code and library, if they are not part of the request.
    output_schema : str or None
        The output contract of the request as JSON.
    profile : bool
        Whether the columns of the result are profiled.
    checksum : bool
        Whether the result names the SHA-256 of the output.
    """

    code: str
    library: tuple[LibraryModule, ...]
    tables: tuple[FetchedTable, ...]
    output_format: DataFormat
    out_dir: Path
    work_dir: Path
    limits: Limits
    hold: bool = False
    rules: OutputRules = field(default_factory=OutputRules)
    unfetched: tuple[str, ...] = ()
    sources_path: Path | None = None
    output_schema: str | None = None
    profile: bool = False
    checksum: bool = True

    @property
    def sources_characters(self) -> int:
        return len(self.code) + sum(len(module.source) for module in self.library)

    def with_sources_file(self, path: Path) -> JobRequest:
        """Write code and library to a file and return the request that names it.

        Parameters
        ----------
        path : Path
            A new file that the kernel can read.

        Returns
        -------
        JobRequest
            The same job.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        with os.fdopen(create_file(path), "wb") as file:
            file.write(orjson.dumps(self._sources()))
        return replace(self, sources_path=path)

    def to_json(self) -> str:
        """Return the request as the text that `transform_shim.job.request` parses.

        Returns
        -------
        str
            One JSON object.
        """
        value: dict[str, Any] = {
            "version": REQUEST_VERSION,
            "tables": [_table(table) for table in self.tables],
            "unfetched": self.unfetched,
            "output_format": self.output_format,
            "output_path": str(self.out_dir / OUTPUT_FILE),
            "manifest_path": str(self.out_dir / MANIFEST_FILE),
            "result_path": str(self.out_dir / RESULT_FILE),
            "displays_path": str(self.out_dir / DISPLAYS_FILE),
            "work_dir": str(self.work_dir),
            "limits": structs.asdict(self.limits),
            "hold": self.hold,
            "mixed_columns": self.rules.mixed_columns,
            "official_compatibility": self.rules.official_compatibility,
            "output_schema": self.output_schema,
            "profile": self.profile,
            "checksum": self.checksum,
        }
        value |= self._sources() if self.sources_path is None else {"sources_path": str(self.sources_path)}
        return orjson.dumps(value).decode()

    def _sources(self) -> dict[str, Any]:
        return {"code": self.code, "library": {module.name: module.source for module in self.library}}

    def execute_code(self) -> str:
        """Return the code of the one ``execute_request`` that runs the job.

        Returns
        -------
        str
            Python source.
        """
        return RUN_CODE.format(request=self.to_json())


def _table(table: FetchedTable) -> dict[str, Any]:
    return {
        "alias": table.alias,
        "data_path": str(table.data_path),
        "manifest_path": str(table.manifest_path) if table.manifest_path else None,
        "data_format": table.data_format,
        "compression": table.compression,
    }
