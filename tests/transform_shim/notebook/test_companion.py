"""The companion: there when it is wanted, gone with the kernel or the front end, and everything it started with it."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

from tests.kernel_spec.conftest import wait_until
from tests.support.gateway_process import GatewayProcess, alive, descendants, ephemeral_gateway_below
from tests.support.notebook_kernel import NotebookKernel, companion_command, companion_environment

ROOT = Path(__file__).parents[3]
TRANSFORM = "%%transform\nimport pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [1]})\n"


def test_companion_and_its_gateway_go_with_the_kernel(tmp_path: Path) -> None:
    with NotebookKernel(tmp_path) as notebook:
        companion = notebook.companion_pid
        assert notebook.run(TRANSFORM).status == "ok"
        started = descendants(companion)
        _, directory = ephemeral_gateway_below(companion)
        assert directory.is_dir()
        assert notebook.value("last_run.where") == "'a gateway of this notebook'"
    assert not alive(companion)
    assert wait_until(lambda: not any(map(alive, started)))
    assert not directory.exists()


def test_a_notebook_that_asks_for_nothing_imports_nothing(tmp_path: Path) -> None:
    with NotebookKernel(tmp_path) as notebook:
        mapped = Path(f"/proc/{notebook.companion_pid}/maps").read_text()
        assert descendants(notebook.companion_pid) == set()
        assert notebook.value("{'pandas', 'pyarrow'} & set(__import__('sys').modules)") == "set()"
    assert "pydantic" not in mapped
    assert "pyarrow" not in mapped


def test_restart_brings_a_new_companion_and_forgets_the_tables(tmp_path: Path, running_gateway: GatewayProcess) -> None:
    (tmp_path / "t.csv").write_text("x\n1\n")
    with NotebookKernel(tmp_path, gateway=running_gateway) as notebook:
        notebook.run("%table t t.csv")
        first = notebook.companion_pid
        inputs = Path(notebook.manager.provisioner.workspace.inputs_dir)
        assert len(list(inputs.iterdir())) == 1
        notebook.manager.restart_kernel(now=True)
        notebook.client.wait_for_ready(timeout=60)
        assert not alive(first)
        assert list(inputs.iterdir()) == []
        assert notebook.value("len(tables)") == "0"
        assert notebook.run("%table t t.csv").stdout == 't: 1 row, 1 column (t.csv); look at it: tables["t"]\n'


def test_companion_knows_the_gateway_of_the_kernel(
    tmp_path: Path, running_gateway: GatewayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The front end and the notebook have different directories, and the gateway is named relative to the first."""
    monkeypatch.chdir(running_gateway.state_dir)
    environment = {"AUTH_TOKEN": running_gateway.token, **companion_environment(running_gateway)}
    with NotebookKernel(tmp_path, environment, {"companion": companion_command(), "gateway": "s"}) as notebook:
        script = TRANSFORM.removeprefix("%%transform\n")
        assert notebook.value(f"__import__('transform_shim').submit({script!r}).where") == repr(running_gateway.url)


def test_kernel_that_dies_takes_its_companion_with_it(tmp_path: Path) -> None:
    with NotebookKernel(tmp_path) as notebook:
        companion = notebook.companion_pid
        notebook.client.execute("import os; os._exit(1)")
        assert wait_until(lambda: not alive(companion))


def test_companion_goes_when_the_front_end_is_killed(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from tests.support.notebook_kernel import NotebookKernel
with NotebookKernel(Path({str(tmp_path)!r})) as notebook:
    notebook.run({TRANSFORM!r})
    print(notebook.companion_pid, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as front:
        assert front.stdout is not None
        companion = int(front.stdout.readline())
        started = descendants(companion)
        _, directory = ephemeral_gateway_below(companion)
        front.kill()
    assert wait_until(lambda: not alive(companion))
    assert wait_until(lambda: not any(map(alive, started)), seconds=30)
    assert wait_until(lambda: not directory.exists(), seconds=30)


def test_a_lost_companion_is_reported(tmp_path: Path, running_gateway: GatewayProcess) -> None:
    with NotebookKernel(tmp_path, gateway=running_gateway) as notebook:
        os.kill(notebook.companion_pid, 9)
        cell = notebook.run("%table x y.csv")
        assert cell.stderr.startswith("UsageError: the companion of this notebook is gone; restart the kernel")


def test_notebook_without_a_companion_names_the_missing_features(tmp_path: Path) -> None:
    with NotebookKernel(tmp_path, settings={"companion": []}) as notebook:
        assert "this needs the companion" in notebook.run("%table x y.csv").stderr
        cell = notebook.run(
            "%%transform --here\nimport pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [1]})\n"
        )
        assert "1 row, 1 column" in cell.text


def test_unused_files_of_a_session_are_removed(tmp_path: Path, running_gateway: GatewayProcess) -> None:
    (tmp_path / "t.csv").write_text("x\n1\n")
    with NotebookKernel(tmp_path, gateway=running_gateway) as notebook:
        inputs = Path(notebook.manager.provisioner.workspace.inputs_dir)
        for _ in range(3):
            notebook.run("%table t t.csv")
            notebook.run(
                "from transform_shim import run_transform\nr = run_transform('def transform(t):\\n    return t')"
            )
            notebook.run("del r")
        notebook.run("%table t t.csv")
        # the table, the one it took the place of (until the next request), and the last run of the session
        assert len(list(inputs.iterdir())) <= 3
        assert notebook.value("len(tables.t)") == "1"


def test_jobs_import_no_notebook_module() -> None:
    code = "import sys, transform_shim.job.run; print([m for m in sys.modules if 'notebook' in m or m == 'IPython'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


def test_functions_elsewhere_say_that_they_need_a_notebook() -> None:
    code = "import transform_shim as t\ntry: t.table('x', 'y.csv')\nexcept t.NotebookError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "this needs the companion of a notebook or console on the kernel `transform`" in done.stdout


@pytest.mark.parametrize("front_end", ["run", "console"])
def test_magics_are_there_in_other_front_ends(front_end: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x\n1\n2\n")
    (tmp_path / "cells.py").write_text("%table t t.csv\nprint(len(tables.t))\n")
    patient = "from jupyter_client import runapp; runapp.OUTPUT_TIMEOUT = 60; runapp.RunApp.launch_instance()"
    command = {  # as `jupyter run` and `jupyter console`, but that the former waits for 10 s only, whatever the load
        "run": ["-c", patient, "--kernel", "transform", "cells.py"],
        "console": ["-m", "jupyter_console", "--kernel", "transform", "--simple-prompt"],
    }
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        [sys.executable, *command[front_end]],
        cwd=tmp_path,
        env={**kept, "PYTHONWARNINGS": "ignore"},
        input="%table t t.csv\nprint(len(tables.t))\nexit\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "t: 2 rows, 1 column (t.csv)" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr


def test_nbclient_runs_a_notebook_where_it_lies(tmp_path: Path, running_gateway: GatewayProcess) -> None:
    (tmp_path / "t.csv").write_text("x\n1\n2\n")
    cells = ["%table t t.csv", "%%transform\ndef transform(t):\n    return t", "last_run.rows"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(
        notebook,
        kernel_name="transform",
        resources={"metadata": {"path": str(tmp_path)}},
        timeout=60,
        config=Config(
            TransformProvisioner={"companion": companion_command(), "gateway": str(running_gateway.state_dir / "s")}
        ),
    )
    client.execute(env={**os.environ, **companion_environment(running_gateway)})
    assert notebook.cells[-1].outputs[0].data["text/plain"] == "2"
    assert "text/html" in notebook.cells[1].outputs[-1].data


def test_cancel_that_comes_with_its_request_is_not_lost(tmp_path: Path) -> None:
    """Both messages are there before the companion reads the first: it cannot have begun with the job."""
    ours, theirs = socket.socketpair()
    script = "import time\ndef transform():\n    time.sleep(600)\n"
    requests = ({"id": 1, "op": "run", "running": False, "code": script}, {"id": 1, "op": "cancel"})
    with ours, theirs:
        for request in requests:
            body = json.dumps(request).encode()
            ours.sendall(struct.pack("!I", len(body)) + body)
        command = [
            sys.executable,
            "-m",
            "gateway.companion",
            "--socket",
            str(theirs.fileno()),
            "--inputs",
            str(tmp_path),
        ]
        with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(theirs.fileno(),), cwd=ROOT) as companion:
            ours.settimeout(60)
            received = b""
            while b'"result"' not in received and b'"cancelled"' not in received:
                received += ours.recv(1 << 16)
            assert companion.stdin is not None
            companion.stdin.close()
            assert companion.wait(60) == 0
    assert b'"cancelled": true' in received or b'"code": "cancelled"' in received, received
