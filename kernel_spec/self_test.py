"""What the fork server has a child do before it forks kernels: use the libraries, and live a whole kernel's life."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from kernel_spec import siblings, warmth

_SECONDS = 10
_KERNEL_APP, _CONNECT = "kernel_spec.kernel_app", "jupyter_client.connect"


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
    """Do the work of a forked child and end it, by an alarm if the work hangs; the exit code is 0 if it succeeded."""
    code = 1
    try:
        signal.alarm(_SECONDS)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def is_whole() -> bool:
    """Return whether all of a kernel has been imported, so that `live_as_a_kernel` shows what each one does."""
    return {_KERNEL_APP, _CONNECT, warmth.SHIM_MODULE} <= sys.modules.keys()


def live_as_a_kernel(directory: str) -> None:
    """Boot a kernel over a connection file of its own and rehearse a job in it; the caller's process ends after.

    Parameters
    ----------
    directory
        Empty, and removed by the caller.
    """
    from kernel_spec import boot

    warmth.renew_after_fork()
    connect: Any = sys.modules[_CONNECT]
    path, _ = connect.write_connection_file(
        os.path.join(directory, "connection.json"),  # noqa: PTH118
        transport="ipc",
        ip=os.path.join(directory, "kernel"),  # noqa: PTH118
        key=os.urandom(32).hex().encode(),
    )
    # As a kernel has them. A user without an entry among the users has no home otherwise, and ipykernel asks for it.
    os.environ["HOME"] = os.environ["IPYTHONDIR"] = tempfile.tempdir = directory
    os.chdir(directory)
    kernel = boot.boot(path, "job", on_bound=lambda: None)
    kernel.shell.run_cell(warmth.REHEARSAL_CODE, store_history=False, silent=True).raise_error()


def _exercise_libraries() -> None:
    warmth.renew_after_fork()
    if siblings.is_possible() and not siblings.knows_its_thread():
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
