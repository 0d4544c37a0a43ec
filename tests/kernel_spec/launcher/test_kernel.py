"""A kernel of the launcher is forked, confined, fresh, and equal to a plainly started one."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_spec.client.async_client import LauncherError
from kernel_spec.client.front_end import write_connection_file
from kernel_spec.fork_server.preload import DEFAULT_MODULES
from kernel_spec.launcher.kernel import UnclaimedStatuses
from kernel_spec.protocol.limits import Limits
from tests.kernel_spec.conftest import Desk, RunningKernel

LIMITS = Limits(memory_bytes=700 << 20, processes=60, descriptors=200, file_size_bytes=3_000_000)


@pytest.fixture(scope="module")
def forked(desk: Desk) -> Iterator[RunningKernel]:
    with desk.kernel(LIMITS) as kernel:
        yield kernel


def describe(kernel: RunningKernel) -> dict[str, object]:
    """The facts that code in the kernel can see of itself."""
    return json.loads(
        kernel.run(
            """
import json, os, resource, signal, sys, threading
packages = ("pandas", "pyarrow", "numpy", "transform_shim", "ipykernel", "debugpy")
limits = ("NOFILE", "FSIZE", "NPROC", "DATA", "CORE")
fds = []
for number in range(64):
    try:
        fds.append((number, os.fstat(number).st_mode >> 12)) if number < 4 else None
    except OSError:
        pass
print(json.dumps({
    "modules": sorted(name for name in sys.modules if name.partition(".")[0] in packages),
    "environment": {k: v.replace(os.environ["HOME"], "HOME") for k, v in os.environ.items() if k != "TRANSFORM_WORKSPACE"},
    "cwd": os.getcwd().replace(os.environ["HOME"], "HOME"),
    "limits": {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in limits},
    "umask": os.umask(0o007),
    "descriptors": fds,
    "threads": sorted(t.name for t in threading.enumerate()),
    "leader": os.getsid(0) == os.getpid() == os.getpgrp(),
    "path": [p for p in sys.path if p],
    "safe_path": sys.flags.safe_path, "utf8": sys.flags.utf8_mode, "dont_write": sys.dont_write_bytecode,
    "sigint": str(signal.getsignal(signal.SIGXFSZ)),
}))
"""
        )
    )


def test_forked_kernel_answers_over_ipc(forked: RunningKernel) -> None:
    assert forked.process.started_by == "fork"
    assert forked.run("print(6 * 7)") == "42\n"


def test_polars_and_duckdb_work_after_the_fork(desk: Desk) -> None:
    code = """
import duckdb, polars as pl
frame = pl.DataFrame({"k": [n % 7 for n in range(100_000)], "n": range(100_000)})
print(frame.lazy().group_by("k").agg(pl.col("n").sum()).collect(engine="streaming")["n"].sum())
print(duckdb.execute("select sum(range) from range(100000)").fetchone()[0])
"""
    with desk.kernel(LIMITS) as kernel:
        assert kernel.process.started_by == "fork"
        assert kernel.run(code) == "4999950000\n4999950000\n"


def test_kernel_has_imported_the_modules_of_jobs_and_no_debugger(forked: RunningKernel) -> None:
    modules = describe(forked)["modules"]
    assert isinstance(modules, list)
    assert {"pandas", "pyarrow.json", "pyarrow.parquet", "numpy"} <= set(modules)
    assert not [name for name in modules if name.startswith("debugpy")]


def test_kernels_inherit_what_is_the_same_for_all(forked: RunningKernel) -> None:
    code = """
import os, tempfile
from kernel_spec.kernel import app
from kernel_spec.sandbox.layers import readable_paths
laid_out = readable_paths.layout.cache_info()  # empty where there are no mount namespaces
print(bool(laid_out.hits) == bool(laid_out.currsize), app._CONFIG["Session"]["packer"].rpartition(".")[0])
print(tempfile.tempdir == tempfile.gettempdir() == os.environ["TMPDIR"] == os.getcwd())
"""
    is_laid_out, packer, is_found = forked.run(code).split()
    assert (is_laid_out, is_found) == ("True", "True")
    assert packer in DEFAULT_MODULES  # else each kernel would import it


def test_limits_are_visible_inside(forked: RunningKernel) -> None:
    limits = describe(forked)["limits"]
    assert isinstance(limits, dict)
    assert limits["NOFILE"] == [200, 200]
    assert limits["FSIZE"] == [3_000_000, 3_000_000]
    assert limits["DATA"] == [700 << 20, 700 << 20]
    assert limits["CORE"] == [1, 1]
    assert limits["NPROC"][0] >= 60


def test_kernel_has_its_three_pipes_and_no_other_descriptor(forked: RunningKernel) -> None:
    described = describe(forked)
    assert described["descriptors"] == [[0, 2], [1, 1], [2, 1], [3, 1]]  # a device, three pipes
    forked.run("import os; os.write(1, b'out'); os.write(2, b'err'); os.write(3, b'log')")
    assert (forked.read("stdout"), forked.read("stderr"), forked.read("log")) == (b"out", b"err", b"log")


def test_only_errors_of_the_kernel_itself_reach_standard_error(forked: RunningKernel) -> None:
    forked.run("log = get_ipython().kernel.log; log.debug('d'); log.warning('w'); log.error('went %s', 'wrong')")
    assert forked.read("stderr") == b"[JobKernelApp] ERROR | went wrong\n"


def test_kernel_opens_no_internet_socket(forked: RunningKernel) -> None:
    assert (
        forked.run(
            """
import socket
for family in (socket.AF_INET, socket.AF_INET6):
    try:
        socket.socket(family).connect(("127.0.0.1", 1))
    except OSError as error:
        print("refused")
"""
        )
        == "refused\nrefused\n"
    )


def test_plainly_started_kernel_is_equal_to_a_forked_one(desk: Desk, forked: RunningKernel) -> None:
    with desk.kernel(LIMITS, plain=True) as plain:
        assert plain.process.started_by == "plain"
        seen, wanted = describe(plain), describe(forked)
    for described in (seen, wanted):
        # where workspaces share a user, what runs already is added
        assert isinstance(described["limits"], dict)
        del described["limits"]["NPROC"]
    assert seen == wanted


def test_two_kernels_share_no_random_numbers_names_or_keys(desk: Desk, forked: RunningKernel) -> None:
    code = """
import json, multiprocessing, numpy, os, random, secrets, tempfile, uuid
print(json.dumps([random.random(), float(numpy.random.random()),
    uuid.uuid4().hex, uuid.uuid1().hex, secrets.token_hex(4),
    next(tempfile._get_candidate_names()), multiprocessing.current_process().authkey.hex(), os.urandom(4).hex()]))
"""
    with desk.kernel() as other:
        pairs = list(zip(json.loads(forked.run(code)), json.loads(other.run(code)), strict=True))
    assert [mine for mine, theirs in pairs if mine == theirs] == []


def test_one_kernel_leaves_nothing_to_the_next(desk: Desk) -> None:
    with desk.kernel() as first:
        first.run(
            """
import os, sys, json, warnings, logging, pandas
os.environ["MARK"] = "1"; os.chdir("/"); sys.modules["marked"] = sys; json.dumps = None
warnings.filterwarnings("error", "mark")
logging.basicConfig(level=10); pandas.options.display.max_rows = 3; open(os.environ["HOME"] + "/file", "w").close()
"""
        )
    with desk.kernel() as second:
        printed = second.run(
            """
import os, sys, json, warnings, logging, pandas
print("MARK" in os.environ, os.getcwd() == os.environ["HOME"], "marked" in sys.modules, json.dumps(1), os.listdir())
print(any("mark" in str(f[1]) for f in warnings.filters), logging.getLogger().level, pandas.options.display.max_rows)
"""
        )
    assert printed == "False True False 1 []\nFalse 30 60\n"


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(
            "import numpy; a = numpy.random.random((400, 400)); (a @ a).sum(); numpy.linalg.svd(a[:50])", id="blas"
        ),
        pytest.param(
            "import pyarrow as pa, pyarrow.compute as pc, io\n"
            "t = pa.table({'a': list(range(200_000))}); pc.sum(t['a']); t.sort_by([('a', 'descending')])\n"
            "s = pa.BufferOutputStream(); w = pa.ipc.new_stream(s, t.schema); w.write_table(t); w.close()\n"
            "assert pa.ipc.open_stream(s.getvalue()).read_all().num_rows == 200_000",
            id="arrow",
        ),
        pytest.param(
            "import pandas as pd, concurrent.futures as f\n"
            "d = pd.DataFrame({'g': [1, 2] * 5000, 'v': range(10_000)})\n"
            "work = lambda _: d.groupby('g').v.sum().sum()\n"
            "with f.ThreadPoolExecutor(4) as pool: r = list(pool.map(work, range(8)))\n"
            "assert set(r) == {49_995_000}",
            id="pandas-in-threads",
        ),
        pytest.param(
            "import multiprocessing as m\n"
            "c = m.get_context('fork'); q = c.SimpleQueue(); p = c.Process(target=q.put, args=(5,)); p.start()\n"
            "assert q.get() == 5; p.join(60); assert p.exitcode == 0",
            id="multiprocessing",
        ),
        pytest.param(
            "import concurrent.futures as f, multiprocessing as m\n"
            "with f.ProcessPoolExecutor(2, mp_context=m.get_context('fork')) as pool:\n"
            "    assert list(pool.map(abs, [-1, -2])) == [1, 2]",
            id="process-pool",
        ),
        pytest.param(
            "import subprocess, sys\n"
            "command = [sys.executable, '-c', 'print(1 + 1)']\n"
            "assert subprocess.run(command, capture_output=True, timeout=30).stdout == b'2\\n'",
            id="subprocess",
        ),
    ],
)
def test_libraries_and_processes_work_after_the_fork(forked: RunningKernel, code: str) -> None:
    assert forked.run(code + "\nprint('done')") == "done\n"


def test_output_of_a_forked_child_arrives_through_its_descriptor(forked: RunningKernel) -> None:
    forked.read("stdout")
    forked.run(
        "import multiprocessing as m\n"
        "p = m.get_context('fork').Process(target=print, args=('from the child',)); p.start(); p.join(60)"
    )
    assert forked.read("stdout") == b"from the child\n"


def test_waiting_kernel_keeps_little_memory_for_itself(desk: Desk) -> None:
    with desk.kernel() as kernel:
        kernel.run("pass")
        try:
            text = Path(f"/proc/{kernel.process.pid}/smaps_rollup").read_text()
        except PermissionError:
            pytest.skip("only root may read the memory map of a process that is not dumpable")
    fields = dict(line.split(":") for line in text.splitlines()[1:])
    private_kilobytes = int(fields["Private_Dirty"].split()[0])
    assert private_kilobytes < 25 * 1024, f"{private_kilobytes} kB"


def test_end_of_an_earlier_process_is_not_that_of_a_later_one_with_its_number() -> None:
    """Numbers come back, on a small host after 32,768 processes; an orphan's end must not be taken for a kernel's."""
    ends = UnclaimedStatuses()
    pid = os.fork()
    if pid == 0:
        os._exit(3)
    ends.add(pid, 0, resource.getrusage(resource.RUSAGE_SELF))
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ends.take(pid) is None, "it is a zombie that was not reaped yet"
    reaped = os.wait4(pid, 0)
    ends.add(*reaped)
    assert ends.take(pid) == reaped[1:]
    assert ends.take(pid) is None


def test_start_after_one_that_failed_has_an_end_of_its_own(desk: Desk) -> None:
    workspace = desk.do(desk.launcher.reserve("at last"))
    null = os.open(os.devnull, os.O_RDWR)
    try:
        with pytest.raises(LauncherError, match="connection"):
            desk.do(desk.launcher.start_kernel("at last", output_fds=(null, null)))
        # Reaped and reported before this is answered.
        desk.do(desk.launcher.kill("at last"))
        write_connection_file(workspace, {"key": "k", "signature_scheme": "hmac-sha256"})
        process = desk.do(desk.launcher.start_kernel("at last", output_fds=(null, null)))
        assert not process.exited.done()
        report = desk.do(desk.launcher.kill("at last"))
        assert desk.do(asyncio.wait_for(process.exited, 60)).cause == report.cause == "killed_by_us"
    finally:
        os.close(null)
        desk.do(desk.launcher.kill("at last"))
        desk.do(desk.launcher.remove("at last"))
