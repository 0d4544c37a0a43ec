"""The state after importing and warming up, and that a job after it is quick."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

#: As the fork server is started: without the threads that numpy and Arrow would bring along.
QUIET = {
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
PROGRAM = """
import os, sys, tempfile
def held():
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
before = held()
import transform_shim.job.rehearsal
imported = held()
transform_shim.job.rehearsal.warm_up()
print(before, imported, held(), os.listdir(tempfile.gettempdir()), [n for n in ("polars", "duckdb", "IPython", "tornado", "zmq") if n in sys.modules])
"""


def test_import_and_warm_up_leave_no_thread_no_descriptor_and_no_file(tmp_path: Path) -> None:
    environment = {**os.environ, **QUIET, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    before, imported, warm = (done.stdout.split(")")[i].strip(" (") for i in range(3))
    assert before == imported == warm
    assert before.startswith("1,")
    assert done.stdout.strip().endswith("[] []")
    assert done.stderr == ""
