"""Counting and sweeping a workspace where the host gives no private root."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import transform_shim
from kernel_spec.kernel import confinement
from kernel_spec.launcher.kernel_processes import KernelProcesses, end_leftovers
from kernel_spec.linux import procfs
from kernel_spec.linux.rmtree import remove_tree
from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.values import WorkspaceInfo
from kernel_spec.sandbox import LAYERS, Identity
from kernel_spec.sandbox.accounting import cgroup_tree
from kernel_spec.sandbox.accounting.cgroup_tree import Tree
from kernel_spec.sandbox.policy.plan import CGROUP, IDENTITY, LANDLOCK, MEMORY_WATCH, MOUNT_NAMESPACE
from kernel_spec.sandbox.probe.report import LayerReport, Report, State, Tier
from tests.kernel_spec.conftest import Desk
from tests.kernel_spec.sandbox.children import NAMESPACES, PLAIN_USER, become, fork, in_child, make_workspace, scratch

# of no other process and test: all that belongs to it is killed and removed
USER = Identity(60176, 60176)
SHM = Path("/dev/shm")
MIB = 1 << 20


def workspace_of(directory: Path) -> WorkspaceInfo:
    places = [str(directory / name) for name in ("", "ipc", "inputs", "work", "out")]
    return WorkspaceInfo("0badcafe", USER.uid, USER.gid, *places)


@pytest.fixture
def left() -> Iterator[tuple[Path, Path]]:
    """A file and a directory in /dev/shm that a job has left."""
    if os.geteuid() != 0:
        pytest.skip("a user of its own takes root")
    file, directory = (SHM / f"tg-test-{os.getpid()}-{name}" for name in ("file", "directory"))
    file.write_bytes(b"left by a job")
    directory.mkdir()
    (directory / "deeper").write_bytes(b"left as well")
    for path in (file, directory):
        os.chown(path, USER.uid, USER.gid)
    yield file, directory
    file.unlink(missing_ok=True)
    remove_tree(directory)


@pytest.fixture
def scratch_dir() -> Iterator[str]:
    with scratch() as directory:
        yield directory


def test_shared_memory_of_a_workspace_goes_with_it(left: tuple[Path, Path], tmp_path: Path) -> None:
    KernelProcesses(workspace_of(tmp_path), own_uid=True).release()
    assert [path for path in left if path.exists()] == []


def test_shared_memory_that_a_dead_launcher_left_goes_at_the_next_start(left: tuple[Path, Path]) -> None:
    end_leftovers(USER.uid)
    assert [path for path in left if path.exists()] == []


def test_hidden_memory_is_charged_to_the_workspace(tmp_path: Path) -> None:
    plain = KernelProcesses(workspace_of(tmp_path), own_uid=False)
    charged = KernelProcesses(workspace_of(tmp_path), own_uid=False, unlinked_shm_bytes=lambda: 7 * MIB)
    assert plain.usage(Limits(), 0).memory_bytes == 0
    assert charged.usage(Limits(), 0).memory_bytes == 7 * MIB


def report(watch: State, without: frozenset[str]) -> Report:
    lines = tuple(LayerReport(layer, State.OFF if layer in without else State.ON, "") for layer in LAYERS)
    lines = tuple(replace(line, state=watch) if line.layer == MEMORY_WATCH else line for line in lines)
    return Report(Tier.STANDARD, lines, (), allow_network=False, seconds=0.0)


@pytest.mark.parametrize(
    ("watch", "without", "own_uids", "counts"),
    [
        (State.DEGRADED, frozenset({MOUNT_NAMESPACE}), True, True),
        (State.ON, frozenset({MOUNT_NAMESPACE}), True, False),
        (State.DEGRADED, frozenset(), True, False),
        (State.DEGRADED, frozenset({MOUNT_NAMESPACE, IDENTITY}), False, False),
        (State.DEGRADED, frozenset({MOUNT_NAMESPACE, IDENTITY, LANDLOCK}), False, True),
    ],
    ids=["ordinary container", "may inspect", "private root", "closed by Landlock", "open to all"],
)
def test_hidden_memory_is_summed_up_only_where_a_job_can_have_it(
    watch: State, without: frozenset[str], own_uids: bool, counts: bool
) -> None:
    found = report(watch, without)
    unlinked_shm_bytes = confinement._unlinked_shm_reader(found, set(found.active), own_uids=own_uids)
    with (SHM / f"tg-test-{os.getpid()}-hidden").open("wb") as file:
        Path(file.name).unlink()
        file.write(bytes(8 * MIB))
        file.flush()
        # others on the machine may free or take some at the same time
        assert (unlinked_shm_bytes() > 4 * MIB) is counts


def test_job_runs_to_its_end_where_proc_is_closed_to_it(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk(workspaces=2, fork_server=False, without_layers=(*NAMESPACES, "user_namespace", IDENTITY))
    if LANDLOCK not in desk.launcher.hello.layers:
        pytest.skip("this kernel has no Landlock, which is what closes /proc here")
    with desk.kernel() as kernel:
        out_dir, work_dir = Path(kernel.process.workspace.out_dir), kernel.process.workspace.work_dir
        assert "PermissionError" in kernel.run("try: open('/proc/self/status')\nexcept OSError as e: print(repr(e))")
        request = {
            **{"version": 1, "code": "import pandas as pd\ndef transform(): return pd.DataFrame({'x': [1]})"},
            **{"library": {}, "tables": [], "output_format": "jsonl", "work_dir": work_dir, "limits": {}},
            **{"output_path": str(out_dir / "output"), "manifest_path": str(out_dir / "manifest.json")},
            "result_path": str(out_dir / "result.json"),
        }
        kernel.run(f"from transform_shim.job.run import run_job; run_job({json.dumps(request)!r})")
        result = json.loads((out_dir / "result.json").read_bytes())
        assert (result["outcome"], result["rows"]) == ("ok", 1)
        assert result["peak_memory_bytes"] > 10 * MIB
        assert (out_dir / "output").read_bytes() == b'{"x":1}\n'


def test_a_kernel_finds_our_packages_although_files_come_beside_them(new_desk: Callable[..., Desk]) -> None:
    """In a checkout, a job may not read the directory with the packages, and Python reads one again that has changed."""
    checkout, is_over = Path(transform_shim.__file__).parents[1], threading.Event()
    if not os.access(checkout, os.W_OK):
        pytest.skip("this user cannot change the checkout")

    def change() -> None:
        while not is_over.wait(0.005):
            os.utime(checkout)

    desk = new_desk(workspaces=2, fork_server=False, without_layers=(*NAMESPACES, "user_namespace"))
    changes = threading.Thread(target=change)
    changes.start()
    try:
        with desk.kernel() as kernel:
            kernel.run("import transform_shim.job.run")
    finally:
        is_over.set()
        changes.join()


def test_a_job_that_removes_or_forbids_its_directories_leaves_the_launcher_alone(desk: Desk) -> None:
    with desk.kernel() as kernel:
        workspace = kernel.process.workspace
        Path(workspace.out_dir).rmdir()
        Path(workspace.work_dir).chmod(0)  # root may enter it all the same
        used_bytes = desk.do(desk.launcher.usage(kernel.kernel_id)).disk_bytes
        assert (used_bytes > Limits().disk_bytes) is (os.geteuid() != 0)
    with desk.kernel() as kernel:
        assert kernel.run("print('runs')") == "runs\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only a user of its own has files in a shared /dev/shm")
def test_too_many_empty_files_in_shared_memory_end_the_kernel(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk(workspaces=1, fork_server=False, without_layers=(*NAMESPACES, CGROUP))
    with desk.kernel() as kernel:
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 60))
        code = "import os, time\nfor n in range(1_100): os.close(os.open(f'/dev/shm/{os.getpid()}-{n}', os.O_CREAT))"
        kernel.run(f"{code}\ntime.sleep(60)", waits=False)
        assert kernel.ended().cause == "disk_limit"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every directory")
def test_a_directory_that_is_closed_to_the_launcher_ends_the_kernel(desk: Desk) -> None:
    with desk.kernel() as kernel:
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 60))
        kernel.run("import os, time\nos.mkdir('closed', 0o300)\ntime.sleep(60)", waits=False)
        report = kernel.ended()
        assert (report.cause, "a directory that cannot be read" in report.detail) == ("disk_limit", True)


MEMORY_OF_CHILDREN = """
import mmap, os, signal, warnings
warnings.simplefilter("ignore")  # from Python 3.12 on, of fork() in a process with threads
for _ in range(3):
    if os.fork() == 0:
        block = mmap.mmap(-1, 150 << 20)
        for place in range(0, len(block), 4096):
            block[place] = 1
        signal.pause()
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_child_that_the_memory_limit_has_just_ended_is_the_cause(desk: Desk) -> None:
    if CGROUP not in desk.status()["layers"]:
        pytest.skip("no control group can be made here")
    with desk.kernel(Limits(memory_bytes=300 * MIB)) as kernel:  # the limit monitor does not run yet
        assert kernel.run(MEMORY_OF_CHILDREN) == "-9\n"
        assert desk.do(desk.launcher.stop(kernel.kernel_id)).cause == "memory_limit"


@pytest.mark.parametrize(
    "code",
    [
        "while True:\n    burn()\n    if os.fork(): os._exit(0)",
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True:\n    if os.fork() == 0: burn(); os._exit(0)\n"
        "    try: os.wait()\n    except ChildProcessError: pass",
    ],
    ids=["its parent has ended", "its parent ignores it"],
)
def test_processor_time_counts_after_a_process_that_nobody_waits_for(new_desk: Callable[..., Desk], code: str) -> None:
    desk = new_desk(workspaces=1, fork_server=False, without_layers=(*NAMESPACES, "user_namespace", CGROUP))
    with desk.kernel() as kernel:
        desk.do(desk.launcher.limit_cpu(kernel.kernel_id, 1))
        burn = "def burn():\n    end = time.process_time() + 0.4\n    while time.process_time() < end: pass\n"
        kernel.run(f"import os, signal, time\n{burn}if os.fork(): time.sleep(60)\n{code}", waits=False)
        assert kernel.ended().cause == "cpu_limit"


def test_it_counts_too_where_only_control_groups_of_version_1_are_mounted(tmp_path: Path) -> None:
    tree = cgroup_tree.open_tree(f"test-{os.getpid()}")
    if tree is None or not any(hierarchy.version == 1 for hierarchy in tree.hierarchies):
        pytest.skip("no hierarchy of version 1 can be written to here")
    job = KernelProcesses(workspace_of(tmp_path), own_uid=False)
    job.create_group(Tree({root: h for root, h in tree._roots.items() if h.version == 1}, []), Limits())
    held, release = os.pipe()
    reader, writer = os.pipe()
    parent = fork()
    try:
        if parent == 0:
            os.read(held, 1)
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            child = os.fork()
            end_seconds = time.process_time() + 0.4
            while child == 0 and time.process_time() < end_seconds:
                pass
            os.write(writer, child.to_bytes(4, "little") if child else b"")
            signal.pause() if child == 0 else os.read(held, 1)
            os._exit(0)
        job._group.attach(parent)  # type: ignore[union-attr]
        os.write(release, b"x")
        child = int.from_bytes(os.read(reader, 4), "little")
        while (before := job.usage(Limits(), 0).cpu_seconds) < 0.3:
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        while procfs.read_status(child) is not None:
            time.sleep(0.001)
        assert job.usage(Limits(), 0).cpu_seconds >= before
    finally:
        job.end()
        os.waitpid(parent, 0)
        job.release()
        tree.close()


def replace_by_link(work: Path) -> None:
    work.rename(work.with_name("moved"))
    work.symlink_to("moved")


@pytest.mark.parametrize(
    "hide",
    [
        lambda work: work.chmod(0),
        lambda work: (work / "below").chmod(0o300),
        lambda work: (work / "below").chmod(0o600),
        replace_by_link,
    ],
    ids=["closed", "not to be read below", "not to be searched below", "replaced by a link"],
)
def test_a_job_of_the_launchers_own_user_cannot_hide_its_files(hide: Callable[[Path], None], scratch_dir: str) -> None:
    if os.geteuid() == 0:
        os.chown(scratch_dir, PLAIN_USER.uid, PLAIN_USER.gid)

    def child() -> list[bool]:
        if os.geteuid() == 0:
            become(PLAIN_USER)
        workspace = workspace_of(Path(make_workspace(scratch_dir, None)))
        (Path(workspace.work_dir) / "below").mkdir()
        (Path(workspace.work_dir) / "below" / "file").write_bytes(bytes(MIB))
        job = KernelProcesses(workspace, own_uid=False)
        before = job.disk_bytes(2 * MIB)
        hide(Path(workspace.work_dir))
        hidden = job.disk_bytes(2 * MIB)
        remove_tree(workspace.workspace_dir)
        return [MIB <= before <= 2 * MIB, hidden > 2 * MIB]

    assert in_child(child) == [True, True]
