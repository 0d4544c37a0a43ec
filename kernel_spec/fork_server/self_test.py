"""Tests in children of the fork server, before it forks kernels: use the libraries, and boot and run one job."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from kernel_spec.fork_server import clone_parent, preload

#: Of the directory of a rehearsal: as short as a workspace's, because the path of a socket in it is limited.
REHEARSAL_PREFIX = "try-"

_SECONDS = 10
_KERNEL_APP, _CONNECT = "kernel_spec.kernel.app", "jupyter_client.connect"


def self_test(fork: Callable[[], int]) -> str | None:
    """Fork a child that uses the libraries as a job would; return what went wrong, or None.

    Arrow and BLAS have both had releases that hang after a fork. The child's alarm ends it if this one does.
    """
    child = fork()
    if child == 0:
        run_and_exit(_exercise_libraries)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"the self-test after a fork hung or crashed (signal {number})"
    if os.WEXITSTATUS(status):
        return f"the self-test after a fork failed (exit code {os.WEXITSTATUS(status)}); see the log"
    return None


def run_and_exit(work: Callable[[], None]) -> NoReturn:
    """Do the work of a forked child and end the process with exit code 0 on success; an alarm ends it if it hangs."""
    code = 1
    try:
        signal.alarm(_SECONDS)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def has_kernel_modules() -> bool:
    """Return whether all modules of a kernel have been imported, so that `simulate_kernel` behaves as a kernel."""
    return {_KERNEL_APP, _CONNECT, preload.SHIM_MODULE} <= sys.modules.keys()


def simulate_kernel(directory: str) -> None:
    """Boot a kernel over a connection file of its own and rehearse a job in it; the process ends afterwards.

    Parameters
    ----------
    directory : str
        Empty, and removed by the caller.
    """
    from kernel_spec.kernel import boot

    preload.renew_after_fork()
    connect: Any = sys.modules[_CONNECT]
    path, _ = connect.write_connection_file(
        os.path.join(directory, "connection.json"),  # noqa: PTH118
        transport="ipc",
        ip=os.path.join(directory, "k"),  # noqa: PTH118
        key=os.urandom(32).hex().encode(),
    )
    # As in a kernel. ipykernel needs a home, and a user without an entry in /etc/passwd has no other.
    os.environ["HOME"] = os.environ["IPYTHONDIR"] = tempfile.tempdir = directory
    os.chdir(directory)
    kernel = boot.boot(path, "job", on_bound=lambda: None)
    kernel.shell.run_cell(preload.REHEARSAL_CODE, store_history=False, silent=True).raise_error()


def _exercise_libraries() -> None:
    preload.renew_after_fork()
    if clone_parent.is_possible() and not clone_parent.has_correct_thread_id():
        raise AssertionError("the C library has the thread id of another process")
    pandas, pyarrow = sys.modules.get("pandas"), sys.modules.get("pyarrow")
    if pandas is None or pyarrow is None:
        return
    frame = pandas.DataFrame({"group": ["a", "b"] * 500, "value": range(1000)})
    totals = frame.groupby("group")["value"].sum()
    compute, parquet = sys.modules.get("pyarrow.compute"), sys.modules.get("pyarrow.parquet")
    table = pyarrow.Table.from_pandas(frame)
    if compute is not None and compute.sum(table["value"]).as_py() != totals.sum():
        raise AssertionError("pyarrow and pandas disagree")
    if parquet is not None:
        sink = pyarrow.BufferOutputStream()
        parquet.write_table(table, sink)
        if parquet.read_table(pyarrow.BufferReader(sink.getvalue())).num_rows != 1000:
            raise AssertionError("a Parquet file lost rows")
    matrix = frame[["value"]].to_numpy(dtype=float).reshape(100, 10)
    if (matrix.T @ matrix).shape != (10, 10):
        raise AssertionError("a matrix product has a wrong shape")
