"""The shell that the fork server builds: what a kernel need not do, and what no kernel must find in it."""

from __future__ import annotations

import json
import subprocess
import sys

from kernel_spec.kernel.environment import interpreter_environment

#: In a process of its own: the shell is the only one of its process.
PROGRAM = """
import dis, json, os, threading
from IPython.core.interactiveshell import InteractiveShell
from kernel_spec.kernel import app

def specialized():
    return sum(i.opname not in dis.opmap for i in dis.get_instructions(InteractiveShell._run_cell, adaptive=True))

before, open_before = specialized(), len(os.listdir("/proc/self/fd"))
app.prepare_shell()
shell = app.JobShell.instance()
print(json.dumps({
    "before": before,
    "after": specialized(),
    "descriptors": len(os.listdir("/proc/self/fd")) - open_before,
    "threads": threading.active_count(),
    "count": shell.execution_count,
    "names": sorted(name for name in shell.user_ns if not name.startswith("_") and name not in shell.user_ns_hidden),
    "result": repr(shell.user_ns.get("_")),
}))
"""

#: A kernel for a person as the fork server forks it; it says what it imports while it boots.
PERSON = """
import json, os, sys, tempfile
from jupyter_client.connect import write_connection_file
from kernel_spec.fork_server import preload
from kernel_spec.kernel import boot
preload.import_all()
from kernel_spec.kernel import app
before, answer = set(sys.modules), os.dup(1)  # the kernel forwards what is written to descriptor 1
with tempfile.TemporaryDirectory(dir="/tmp") as directory:
    os.environ["HOME"] = os.environ["IPYTHONDIR"] = directory
    path, _ = write_connection_file(directory + "/c.json", transport="ipc", ip=directory + "/k", key=b"secret")
    prepared = app.JobShell.instance()
    os.chdir(directory)
    kernel = boot.boot(path, "notebook", on_bound=lambda: None)
    found = {"imported": sorted(set(sys.modules) - before), "is_prepared": kernel.shell is prepared}
    found["visited"] = [os.path.samefile(place, directory) for place in kernel.shell.user_ns["_dh"]]
os.write(answer, json.dumps(found).encode())
os._exit(0)
"""


def test_kernel_of_a_notebook_begins_with_the_prepared_shell_in_its_own_directory_and_imports_no_magics() -> None:
    command = [sys.executable, "-P", "-c", PERSON]
    done = subprocess.run(command, env=interpreter_environment(), stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["is_prepared"]
    assert found["visited"] == [True], "the directory of the fork server is no part of the history"
    assert [name for name in found["imported"] if name.startswith(("transform_shim", "IPython"))] == []


def test_a_prepared_shell_shows_no_trace_of_the_cells_it_ran() -> None:
    command = [sys.executable, "-P", "-c", PROGRAM]
    done = subprocess.run(command, env=interpreter_environment(), stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)  # the cells print nothing
    assert found.pop("after") > found.pop("before")
    assert found == {"descriptors": 0, "threads": 1, "count": 1, "names": [], "result": "''"}
