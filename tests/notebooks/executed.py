"""A notebook of `notebooks/`, run from top to bottom on a real kernel `transform`."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

from tests.support.gateway_process import GatewayProcess
from tests.support.notebook_kernel import companion_command, companion_environment, plain

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
CELL_SECONDS = 90
#: lines that a read or write of more than ten seconds adds to the log, as on a busy machine
PROGRESS = re.compile(r"(read|write) \w+: [\d,]+ rows, [\d,]+ MB (so far|in \d+ s)")
#: the variables that a front end under test inherits; a developer's own STATE_DIR or MEMORY_LIMIT_BYTES must not change a notebook
INHERITED = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONSAFEPATH", "TMPDIR")


def paths() -> list[Path]:
    """Return the notebooks in the order of their numbers."""
    return sorted(NOTEBOOKS.glob("*.ipynb"))


@dataclass(frozen=True)
class Executed:
    """The outputs of a run, by the ids of the cells."""

    cells: Mapping[str, Any]

    def text(self, cell: str) -> str:
        """Return what a cell printed and, as plain text, what it showed."""
        return plain("\n".join(self._texts(cell)))

    def log(self, cell: str) -> list[str]:
        """Return the lines that a cell printed, to either stream, without those about progress."""
        streams = [output["text"] for output in self.cells[cell].outputs if output.output_type == "stream"]
        return [line for line in "".join(streams).splitlines() if not PROGRESS.fullmatch(line)]

    def page(self, cell: str) -> str:
        """Return what a reader sees in JupyterLab: the text of the HTML that a cell showed."""
        shown = " ".join(data["text/html"] for data in self._shown(cell) if "text/html" in data)
        return " ".join(html.unescape(re.sub(r"<(style|[^>]*)>", " ", shown)).split())

    def pictures(self, cell: str) -> list[str]:
        """Return the PNG pictures of a cell, as base64."""
        return [data["image/png"] for data in self._shown(cell) if "image/png" in data]

    def _shown(self, cell: str) -> list[Any]:
        return [output["data"] for output in self.cells[cell].outputs if "data" in output]

    def _texts(self, cell: str) -> list[str]:
        outputs = self.cells[cell].outputs
        return [
            output["text"] if "text" in output else output.get("data", {}).get("text/plain", "") for output in outputs
        ]


def execute(
    path: Path,
    gateway: GatewayProcess,
    environment: Mapping[str, str] | None = None,
    before_end: Callable[[Executed], None] | None = None,
) -> Executed:
    """Run all cells; one that fails fails the run, unless it is tagged as meant to.

    Parameters
    ----------
    path : Path
        Of the notebook.
    gateway : GatewayProcess
        Makes the kernel, in place of a launcher of its own, and runs the transforms, in place of a gateway that the
        companion starts.
    environment : mapping, optional
        What the front end has beyond what every process has.
    before_end : callable, optional
        Called while the kernel and what belongs to it are still there.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="transform",
        shutdown_kernel="immediate",
        config=Config(TransformProvisioner={"companion": companion_command(), "gateway": str(gateway.state_dir / "s")}),
    )
    client.resources = {"metadata": {"path": str(path.parent)}}
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    variables = {**inherited, **companion_environment(gateway), **(environment or {})}
    done = Executed({cell.id: cell for cell in notebook.cells})
    with client.setup_kernel(env=variables):
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        if before_end is not None:
            before_end(done)
    return done
