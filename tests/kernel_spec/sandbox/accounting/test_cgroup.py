from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kernel_spec.protocol.limits import Limits
from kernel_spec.sandbox import SandboxError
from kernel_spec.sandbox.accounting import cgroup_mounts, cgroup_tree
from kernel_spec.sandbox.accounting.cgroup import Group
from kernel_spec.sandbox.accounting.cgroup_mounts import Hierarchy
from kernel_spec.sandbox.accounting.cgroup_tree import Tree
from tests.kernel_spec.sandbox.children import fork

MIB = 1 << 20
SMALL = Limits(memory_bytes=64 * MIB, processes=8)


@pytest.fixture
def tree() -> Iterator[Tree]:
    found = cgroup_tree.open_tree(f"test-{os.getpid()}")
    if found is None:
        pytest.skip("no cgroup hierarchy with a memory controller can be written to here")
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def group(tree: Tree) -> Group:
    return tree.create("workspace", SMALL)


def waiting_child(action: str = "wait") -> tuple[int, int]:
    """Fork a child that acts when it is told to, by closing the returned descriptor, and then waits."""
    held, release = os.pipe()
    pid = fork()
    if pid == 0:
        os.close(release)
        os.read(held, 1)
        if action == "allocate":
            kept = [bytes(b"\1" * MIB) for _ in range(200)]
            os._exit(len(kept) % 2)
        if action == "fork":
            _count_forks()
        signal.pause()
    os.close(held)
    return pid, release


def _count_forks() -> None:
    forked = []
    try:
        while len(forked) < 30:
            pid = os.fork()
            if pid == 0:
                signal.pause()
            forked.append(pid)
    except OSError:
        pass
    for pid in forked:
        os.kill(pid, signal.SIGKILL)
    os._exit(len(forked))


def restless(group: Group, traces: Path) -> int:
    """Start a chain of processes in the group, each of which lives for one byte, and return the first's pid."""
    pid = fork()
    if pid == 0:
        for entrance in group.entrances:
            Path(entrance).write_text("0")
        place = os.open(traces, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if os.fork():
            signal.pause()
        while True:
            os.write(place, b"x")
            if os.fork():
                os._exit(0)
    while not traces.exists() or traces.stat().st_size < 50:
        os.sched_yield()
    return pid


def end(group: Group, pid: int) -> None:
    group.kill()
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    group.remove()


def test_group_that_has_stopped_leaves_no_trace(tree: Tree, tmp_path: Path) -> None:
    """Where no version 2 kills all at once, the killing goes on until the look finds nothing that could go on."""
    group = tree.create(
        "workspace", Limits(memory_bytes=64 * MIB, processes=1000)
    )  # the dead count until somebody reaps them
    traces = tmp_path / "traces"
    pid = restless(group, traces)
    assert not group.is_stopped()
    while not group.is_stopped():
        group.kill()
    stopped = traces.stat().st_size
    end(group, pid)
    assert traces.stat().st_size == stopped


def test_frozen_group_makes_no_progress_until_it_is_killed(unified: Hierarchy, tmp_path: Path) -> None:
    group = Group({unified.directory: unified})
    traces = tmp_path / "traces"
    pid = restless(group, traces)
    assert not group.is_frozen()
    assert group.freeze()
    while not group.is_frozen():
        os.sched_yield()
    frozen = traces.stat().st_size
    assert len(group.pids()) >= 2, "nothing has ended"
    end(group, pid)
    assert traces.stat().st_size == frozen
    unified.directory.mkdir()


def test_group_without_version_2_says_that_it_cannot_freeze(tree: Tree, group: Group) -> None:
    old = Group({path: kind for path, kind in group._directories.items() if kind.version == 1})
    assert not old.freeze()
    assert not old.is_frozen()


def test_memory_beyond_the_limit_kills_and_is_counted(group: Group) -> None:
    pid, release = waiting_child("allocate")
    group.attach(pid)
    os.close(release)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert group.oom_kills() >= 1


def test_same_allocation_works_outside_the_group(group: Group) -> None:
    pid, release = waiting_child("allocate")
    os.close(release)
    _, status = os.waitpid(pid, 0)
    assert os.WIFEXITED(status)
    assert group.oom_kills() == 0


def test_processes_of_the_group_are_bounded(tree: Tree, group: Group) -> None:
    if not any("pids" in hierarchy.controllers for hierarchy in tree.hierarchies):
        pytest.skip("no hierarchy with a pids controller can be written to here")
    pid, release = waiting_child("fork")
    group.attach(pid)
    os.close(release)
    _, status = os.waitpid(pid, 0)
    # 8 and one of ours, of which the forking process is one.
    assert os.WEXITSTATUS(status) == 8


def test_children_follow_their_parent_and_are_killed_with_the_group(group: Group) -> None:
    reader, writer = os.pipe()
    pid, release = waiting_child()
    group.attach(pid)
    grandchild_of = fork()
    if grandchild_of == 0:
        os.close(reader)
        group.attach(os.getpid())
        if os.fork() == 0:
            os.setsid()
            os.write(writer, b"x")
            signal.pause()
        os._exit(0)
    os.close(writer)
    os.waitpid(grandchild_of, 0)
    os.read(reader, 1)
    assert len(group.pids()) == 2
    group.kill()
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert os.read(reader, 1) == b"", "the orphan held the pipe until it was killed"
    os.close(reader)
    os.close(release)


def test_usage_counts_cpu_time_where_the_kernel_does(group: Group) -> None:
    pid, release = waiting_child("allocate")
    group.attach(pid)
    os.close(release)
    os.waitpid(pid, 0)
    cpu_seconds = group.cpu_seconds()
    if all(hierarchy.version == 1 for hierarchy in group._directories.values()):
        pytest.skip("no version 2 hierarchy is mounted, which alone counts CPU time in every group")
    assert cpu_seconds > 0


@pytest.mark.usefixtures("tree")
def test_leftovers_of_a_killed_launcher_are_swept() -> None:
    stamp = f"left-{os.getpid()}"
    pid, release = waiting_child()
    killed = cgroup_tree.open_tree(stamp)
    assert killed is not None
    killed.create("left", SMALL).attach(pid)
    while killed._locks:  # as the kernel does at the end of a process
        os.close(killed._locks.pop())
    successor = cgroup_tree.open_tree(stamp)
    assert successor is not None
    assert successor.sweep() == 1
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    os.close(release)
    assert successor.sweep() == 0
    successor.close()


def _sweeping_child() -> int:
    pid = fork()
    while pid == 0:
        cgroup_tree.sweep_abandoned()
    return pid


@pytest.mark.usefixtures("tree")
def test_tree_is_never_swept_by_another_launcher_that_starts_at_the_same_time() -> None:
    stamp = f"raced-{os.getpid()}"
    sweepers = [_sweeping_child() for _ in range(3)]
    try:
        for _ in range(200):
            raced = cgroup_tree.open_tree(stamp)
            assert raced is not None
            try:
                group = raced.create("workspace", SMALL)
                cgroup_tree.sweep_abandoned()
                assert all(Path(entrance).exists() for entrance in group.entrances)
            finally:
                raced.close()
    finally:
        for pid in sweepers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_tree_is_made_although_a_sweep_removes_its_directory_just_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    mkdir = os.mkdir

    def mkdir_beside_a_sweep(path: Path, mode: int = 0o777) -> None:
        monkeypatch.setattr(os, "mkdir", mkdir)
        root.rmdir()
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))

    monkeypatch.setattr(os, "mkdir", mkdir_beside_a_sweep)
    lock = cgroup_tree._make_and_lock(root)
    assert lock is not None
    os.close(lock)


def test_abandoned_trees_are_swept_and_used_ones_are_kept(tree: Tree) -> None:
    stamp = f"gone-{os.getpid()}"
    pid = fork()
    if pid == 0:
        left = cgroup_tree.open_tree(stamp)
        assert left is not None
        left.create("workspace", SMALL)
        os._exit(0)  # as if killed: nothing is closed in order
    os.waitpid(pid, 0)
    abandoned = [h.directory / f"{cgroup_mounts.PREFIX}{stamp}" for h in tree.hierarchies]
    own = [h.directory / f"{cgroup_mounts.PREFIX}test-{os.getpid()}" for h in tree.hierarchies]
    assert all(place.is_dir() for place in abandoned)
    assert cgroup_tree.sweep_abandoned() >= len(abandoned)
    assert not any(place.exists() for place in abandoned)
    assert all(place.is_dir() for place in own)
    tree.create("workspace", SMALL)


def test_process_that_is_gone_cannot_be_attached(group: Group) -> None:
    pid = fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(SandboxError, match="cgroup"):
        group.attach(pid)


def test_tree_leaves_nothing(tree: Tree) -> None:
    tree.create("workspace", SMALL)
    places = [h.directory / f"{cgroup_mounts.PREFIX}test-{os.getpid()}" for h in tree.hierarchies]
    assert all(place.is_dir() for place in places)
    tree.close()
    assert not any(place.exists() for place in places)


@pytest.fixture
def threaded() -> Iterator[tuple[Tree, Hierarchy]]:
    """A tree opened by this process, and its unified hierarchy without controllers."""
    before = Path("/proc/self/cgroup").read_text()
    tree = cgroup_tree.open_tree(f"test-threaded-{os.getpid()}")
    found = [h for h in tree.hierarchies if h.is_threaded] if tree is not None else []
    try:
        if tree is None or not found:
            pytest.skip("no unified hierarchy without controllers can be written to here")
        yield tree, found[0]
    finally:
        if tree is not None:
            tree.close()
        assert Path("/proc/self/cgroup").read_text() == before, "whoever closes its tree is back where it came from"


def entered(group: Group) -> int:
    """Fork a process that enters the group by itself, as a kernel does; return when it is in."""
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            for entrance in group.entrances:
                Path(entrance).write_text("0")
            os.write(writer, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"x", "the process could not enter"
    os.close(reader)
    return pid


def test_process_enters_as_a_thread_and_not_as_a_process_that_must_wait(threaded: tuple[Tree, Hierarchy]) -> None:
    """By the files that take a thread; all that the group is for holds for a process that came in by them."""
    tree, _ = threaded
    group = tree.create("workspace", SMALL)
    names = {Path(entrance).name for entrance in group.entrances}
    assert names == {"tasks", "cgroup.threads"}
    pid = entered(group)
    assert group.pids() == {pid}
    assert group.freeze()
    while not group.is_frozen():
        os.sched_yield()
    end(group, pid)


def test_process_from_before_the_tree_enters_once_it_is_adopted(threaded: tuple[Tree, Hierarchy]) -> None:
    tree, hierarchy = threaded
    group = tree.create("workspace", SMALL)
    outside, release = waiting_child()
    (hierarchy.directory / "cgroup.procs").write_text(str(outside))
    (path,) = [entrance for entrance in group.entrances if entrance.endswith("cgroup.threads")]
    try:
        with pytest.raises(OSError, match="not supported"):
            Path(path).write_text(str(outside))
        tree.adopt(outside)
        Path(path).write_text(str(outside))
    finally:
        os.kill(outside, signal.SIGKILL)
        os.waitpid(outside, 0)
        os.close(release)


def test_closing_a_tree_waits_for_its_ending_processes(threaded: tuple[Tree, Hierarchy]) -> None:
    """As the fork server does, which is killed a moment before and has much memory to give back."""
    tree, hierarchy = threaded
    ending = fork()
    if ending == 0:
        time.sleep(0.2)
        os._exit(0)
    tree.close()
    os.waitpid(ending, 0)
    assert not (hierarchy.directory / f"{cgroup_mounts.PREFIX}test-threaded-{os.getpid()}").exists()


def test_leftovers_of_a_launcher_whose_groups_were_not_threaded_are_swept(threaded: tuple[Tree, Hierarchy]) -> None:
    """As of one from before; while such a group has processes, none beside it can be threaded."""
    tree, hierarchy = threaded
    root = hierarchy.directory / f"{cgroup_mounts.PREFIX}test-threaded-{os.getpid()}"
    pid, release = waiting_child()
    old = {h.directory / root.name / "old": replace(h, is_threaded=False) for h in tree.hierarchies}
    for place in old:
        place.mkdir(parents=True)
    Group(old).attach(pid)
    assert tree.sweep() == 1
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    os.close(release)
    group = tree.create("workspace", SMALL)
    end(group, entered(group))


def test_host_without_a_limit_of_memory_gets_no_tree_and_keeps_none(
    threaded: tuple[Tree, Hierarchy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where version 2 is alone and delegates no controllers: a process in a group cannot remove it."""
    _, hierarchy = threaded
    before = Path("/proc/self/cgroup").read_text(), sorted(hierarchy.directory.iterdir())
    monkeypatch.setattr(cgroup_mounts, "find_hierarchies", lambda: (replace(hierarchy, is_threaded=False),))
    assert cgroup_tree.open_tree(f"none-{os.getpid()}") is None
    assert (Path("/proc/self/cgroup").read_text(), sorted(hierarchy.directory.iterdir())) == before


def test_version_2_kills_a_whole_group_at_once(unified: Hierarchy) -> None:
    """For real: no process that forks faster than pids can be listed gets away."""
    group = Group({unified.directory: unified})
    pid = fork()
    if pid == 0:
        os.setsid()
        Path(group.entrances[0]).write_text("0")
        while True:
            if (os.fork() == 0 and len(group.pids()) > 30) or len(group.pids()) > 40:
                signal.pause()
    while len(group.pids()) < 30:
        os.sched_yield()
    (unified.directory / "cgroup.kill").write_text("1")
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    group.remove()
    assert not unified.directory.exists()
    unified.directory.mkdir()


@pytest.fixture
def delegated(tmp_path: Path) -> Hierarchy:
    """A version 2 group as plain files, for machines whose controllers are in version 1."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory pids\n")
    workspace = tmp_path / f"{cgroup_mounts.PREFIX}x" / "workspace"
    workspace.mkdir(parents=True)
    for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cgroup.procs"):
        (workspace / name).touch()
    return Hierarchy(2, cgroup_mounts._delegated(tmp_path), tmp_path)


def test_version_2_limits_are_written_where_the_kernel_reads_them(delegated: Hierarchy) -> None:
    assert delegated.controllers == {"memory", "pids"}
    Tree({delegated.directory / f"{cgroup_mounts.PREFIX}x": delegated}, []).create("workspace", SMALL)
    workspace = delegated.directory / f"{cgroup_mounts.PREFIX}x" / "workspace"
    assert (workspace / "memory.max").read_text() == str(64 * MIB)
    assert (workspace / "memory.swap.max").read_text() == "0"
    assert (workspace / "pids.max").read_text() == "9"


def test_version_2_counters_are_read(delegated: Hierarchy) -> None:
    workspace = delegated.directory / f"{cgroup_mounts.PREFIX}x" / "workspace"
    (workspace / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (workspace / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    group = Group({workspace: delegated})
    assert (group.oom_kills(), group.cpu_seconds()) == (2, 1.5)


def test_missing_controller_is_an_error_and_never_a_file_of_ours(tmp_path: Path) -> None:
    hierarchy = Hierarchy(2, frozenset({"memory"}), tmp_path)
    with pytest.raises(SandboxError, match=r"memory\.max"):
        Tree({tmp_path / f"{cgroup_mounts.PREFIX}x": hierarchy}, []).create("workspace", SMALL)
    assert not list(tmp_path.rglob("memory*"))
