from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from kernel_spec.sandbox import SandboxError
from kernel_spec.sandbox.layers import landlock, no_new_privs
from kernel_spec.sandbox.layers.landlock import PathRule
from tests.kernel_spec.sandbox.children import in_child, make_plan, outcome

pytestmark = pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")
needs_scopes = pytest.mark.skipif(landlock.abi() < landlock.ABI_SCOPES, reason="scopes came with ABI 6")
GROUP_LIMITS = (
    *("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/memory.max"),
    *("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
needs_network = pytest.mark.skipif(landlock.abi() < landlock.ABI_NETWORK, reason="TCP rules came with ABI 4")


def enter(workspace_dir: str, **changes: object) -> None:
    no_new_privs.apply()
    landlock.apply(make_plan(workspace_dir, frozenset({"landlock"}), **changes))


def test_files_outside_are_closed_and_the_workspace_stays_open(workspace_dir: str, scratch_dir: str) -> None:
    outside = Path(scratch_dir, "outside")
    outside.write_text("x")
    work = Path(workspace_dir, "work")

    def try_all() -> list[str]:
        return [
            outcome(outside.read_text),
            outcome(lambda: outside.write_text("y")),
            outcome(lambda: os.listdir(scratch_dir)),
            outcome(lambda: Path(scratch_dir, "new").touch()),
            outcome(lambda: os.listdir("/proc/self")),
            outcome(lambda: os.listdir("/tmp")),
            outcome(lambda: os.listdir("/home")),
        ]

    def child() -> dict[str, object]:
        before = try_all()
        Path(scratch_dir, "new").unlink()
        enter(workspace_dir)
        (work / "a").write_text("mine")
        (work / "a").rename(Path(workspace_dir, "out", "a"))
        (work / "d").mkdir()
        (work / "d").rmdir()
        return {
            "before": before,
            "after": try_all(),
            "python": outcome(Path(os.__file__).read_bytes),
            "null": outcome(lambda: Path(os.devnull).write_text("x")),
        }

    found = in_child(child)
    assert set(found["before"]) == {"worked"}
    assert set(found["after"]) == {"EACCES"}
    assert (found["python"], found["null"]) == ("worked", "worked")


def test_inputs_can_be_read_and_not_changed(workspace_dir: str) -> None:
    data = Path(workspace_dir, "inputs", "t.jsonl")
    data.write_text("{}")

    def child() -> list[str]:
        before = outcome(lambda: data.write_text("{}"))
        enter(workspace_dir)
        return [before, outcome(data.read_text), outcome(lambda: data.write_text("")), outcome(data.unlink)]

    assert in_child(child) == ["worked", "worked", "EACCES", "EACCES"]


def is_file(fd: int, file: os.stat_result) -> bool:
    return outcome(lambda: os.fstat(fd)) == "worked" and os.path.samestat(os.fstat(fd), file)


def test_limits_of_the_own_control_group_can_be_read_and_nothing_else_about_it(workspace_dir: str) -> None:
    limits = [place for place in map(Path, GROUP_LIMITS) if place.exists()]

    def child() -> dict[str, object]:
        enter(workspace_dir)
        own = Path("/proc/self/cgroup").stat()
        return {
            "own": outcome(Path("/proc/self/cgroup").read_text),
            "limits": [outcome(place.read_text) for place in limits],
            "other": outcome(Path(f"/proc/{os.getppid()}/cgroup").read_text),
            "rest": [outcome(Path("/proc/self", name).read_text) for name in ("status", "cmdline", "mountinfo")],
            "processes": [outcome(place.with_name("cgroup.procs").read_text) for place in limits],
            # Linux may drop a file in /proc from its cache while nothing refers to it; the rule would not hold for the next
            "kept": any(is_file(fd, own) for fd in range(1024)),
        }

    found = in_child(child)
    assert (found["own"], found["other"], found["kept"]) == ("worked", "EACCES", True)
    assert set(found["limits"]) <= {"worked"}
    assert set(found["rest"]) == {"EACCES"}
    assert set(found["processes"]) <= {"EACCES"}


def test_interpreter_starts_inside_and_other_programs_outside_do_not(workspace_dir: str, scratch_dir: str) -> None:
    import shutil
    import sys

    program = Path(scratch_dir, "true")
    shutil.copy("/bin/true", program)

    def child() -> list[object]:
        def run(*argv: str) -> str:
            return outcome(lambda: subprocess.run(argv, check=True, stdin=subprocess.DEVNULL))

        before = run(str(program))
        enter(workspace_dir)
        os.chdir(f"{workspace_dir}/work")
        return [before, run(str(program)), run(sys.executable, "-I", "-c", "import json")]

    assert in_child(child) == ["worked", "EACCES", "worked"]


@needs_network
def test_tcp_is_refused_unless_the_network_is_allowed(workspace_dir: str) -> None:
    def bind() -> None:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))

    def child(allow: bool) -> list[str]:
        before = outcome(bind)
        enter(workspace_dir, allow_network=allow)
        return [before, outcome(bind)]

    assert in_child(lambda: child(False)) == ["worked", "EACCES"]
    assert in_child(lambda: child(True)) == ["worked", "worked"]


@needs_scopes
def test_no_signal_and_no_abstract_socket_leaves_the_domain(workspace_dir: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0transform-gateway-test-" + str(os.getpid()))
        server.listen()
        name = server.getsockname()

        def connect() -> None:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(name)

        def child() -> list[str]:
            def try_both() -> list[str]:
                return [outcome(connect), outcome(lambda: os.kill(os.getppid(), 0))]

            before = try_both()
            enter(workspace_dir)
            own = os.fork()
            if own == 0:
                os.pause() if hasattr(os, "pause") else os.read(os.pipe()[0], 1)
            mine = outcome(lambda: os.kill(own, 9))
            os.waitpid(own, 0)
            return [*before, *try_both(), mine]

        assert in_child(child) == ["worked", "worked", "EPERM", "EPERM", "worked"]


def test_missing_workspace_is_an_error_and_missing_optional_path_is_not(workspace_dir: str) -> None:
    os.close(landlock.prepare((PathRule("/no/such/path", landlock.READ_ONLY),), allow_network=False))
    with pytest.raises(SandboxError, match="does not exist"):
        landlock.prepare((PathRule("/no/such/path", landlock.WORKSPACE, optional=False),), allow_network=False)


def test_kernel_without_landlock_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    with pytest.raises(SandboxError, match="does not have it"):
        landlock.prepare((), allow_network=False)


@pytest.mark.parametrize(("version", "size"), [(1, 8), (3, 8), (4, 16), (5, 16), (6, 24), (9, 24), (12, 24)])
def test_ruleset_has_the_length_its_abi_knows(version: int, size: int) -> None:
    handled = landlock._file_rights(version)
    assert len(landlock._attributes(version, handled, allow_network=False)) == size
    assert bool(handled & landlock.TRUNCATE) == (version >= 3)
