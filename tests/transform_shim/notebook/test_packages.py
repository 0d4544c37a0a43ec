"""Packages in a notebook: listed, and not installed."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from tests.support.notebook_kernel import NotebookKernel
from transform_shim.notebook.packages import NO_INSTALLATION


def test_packages_are_listed_with_their_versions(notebook: NotebookKernel) -> None:
    lines = notebook.run("%packages").stdout.splitlines()
    assert f"pandas {version('pandas')}" in lines
    assert lines == sorted(lines, key=lambda line: line.split()[0].lower())
    assert notebook.run("%packages PyArrow").stdout == f"pyarrow {version('pyarrow')}\n"
    assert notebook.run("%packages no-such").stdout == "no package has 'no-such' in its name\n"


@pytest.mark.parametrize("command", ["%pip install wheel", "!pip install wheel", "!python -m pip install -q wheel"])
def test_installation_is_refused_with_the_remedy(notebook: NotebookKernel, command: str) -> None:
    cell = notebook.run(command)
    assert NO_INSTALLATION in " ".join((cell.stderr + cell.error).split())
    assert "restart the kernel to use" not in cell.stdout


def test_other_commands_run(notebook: NotebookKernel) -> None:
    for number in range(50):  # the output must be there before the cell ends
        assert notebook.run(f"!echo installed by pip {number}").stdout == f"installed by pip {number}\n"
    cell = "def show(word):\n    !echo {word} >&2; exit 3\nshow('here'); print(_exit_code)"
    assert notebook.run(cell).stdout == "here\n3\n"
    assert notebook.run("!sleep 600 & echo begun").stdout == "begun\n"


def test_interrupt_ends_the_commands_that_a_shell_waits_for(notebook: NotebookKernel) -> None:
    asked = notebook.client.execute("!echo begun; sleep 601; echo never")
    while notebook.client.get_iopub_msg(timeout=60)["content"].get("text") != "begun\n":
        pass
    notebook.manager.interrupt_kernel()
    while (reply := notebook.client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != asked:
        pass
    assert reply["content"]["status"] == "ok"
    commands = "[p.read_bytes() for p in __import__('pathlib').Path('/proc').glob('[0-9]*/cmdline')]"
    assert "601" not in notebook.value(commands)
