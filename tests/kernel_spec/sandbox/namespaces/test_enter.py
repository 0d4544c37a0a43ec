# ruff: noqa: PTH110, PTH115
from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernel_spec.linux import syscalls
from kernel_spec.sandbox import Identity, SandboxError, confine, enter_namespaces
from kernel_spec.sandbox.accounting import processes
from kernel_spec.sandbox.layers import readable_paths, seccomp
from kernel_spec.sandbox.layers.seccomp_rules import refuse
from kernel_spec.sandbox.namespaces import enter, pid_namespace_init
from kernel_spec.sandbox.policy.attempt import attempt
from kernel_spec.sandbox.probe.trials import try_namespace
from tests.kernel_spec.sandbox.children import (
    FLAGS,
    MAKE_ORPHANS,
    NAMESPACES,
    PLAIN_USER,
    become,
    deny_namespaces,
    fork,
    in_child,
    make_plan,
    make_workspace,
    mount_not_on_a_process,
    outcome,
    run_confined,
    scratch,
)


def wanted() -> frozenset[str]:
    """Namespaces as this user gets them: directly as root, else in a user namespace."""
    return NAMESPACES if os.geteuid() == 0 else NAMESPACES | {"user_namespace"}


@pytest.fixture(autouse=True)
def _host_allows_namespaces(workspace_dir: str) -> None:
    plan = make_plan(workspace_dir, wanted() - NAMESPACES)
    found = attempt(lambda: try_namespace(plan, "mount_namespace"))
    if not found.succeeded:
        pytest.skip(f"this host gives no mount namespace: {found.why}")


def inside(workspace_dir: str, layers: frozenset[str], look: Callable[[], Any], **changes: Any) -> Any:
    """Return what `look` returns in a process that was forked by an intermediate process with these namespaces."""

    def launcher() -> Any:
        processes.become_subreaper()
        liveness_pipe, _end = os.pipe()
        plan = make_plan(workspace_dir, layers | FLAGS, **changes)

        def kernel() -> Any:
            enter.enter_private_root(plan)
            return look()

        def intermediate() -> Any:
            enter_namespaces(plan, liveness_pipe)
            return in_child(kernel)

        return in_child(intermediate)

    return in_child(launcher)


def layers_for(*names: str) -> frozenset[str]:
    return frozenset(names) | (wanted() - NAMESPACES)


def test_private_root_shows_the_workspace_and_python_and_nothing_else(workspace_dir: str, scratch_dir: str) -> None:
    outside = Path(scratch_dir, "outside")
    outside.write_text("x")
    Path(workspace_dir, "work", "mine").write_text("y")
    allowed = {path.split("/")[1] for path in readable_paths.default_read_only_paths()}
    allowed |= {"dev", "proc", "run", "tmp", "var", workspace_dir.split("/")[1]}

    def look() -> dict[str, Any]:
        return {
            "outside": outcome(outside.read_text),
            "root": sorted(os.listdir("/")),
            "mine": Path(workspace_dir, "work", "mine").read_text(),
            "tmp": os.listdir("/tmp") if not workspace_dir.startswith("/tmp/") else [],
            "shm": os.listdir("/dev/shm"),
            "dev": sorted(os.listdir("/dev")),
            "shadow": outcome(lambda: Path("/etc/shadow").stat()),
            "home": outcome(lambda: Path("/home").stat()),
            "write": outcome(lambda: Path("/new").write_text("x")),
            "write usr": outcome(lambda: Path("/usr/new").write_text("x")),
            "python": outcome(Path(os.__file__).read_bytes),
        }

    found = inside(workspace_dir, layers_for("mount_namespace"), look)
    assert found["outside"] == "ENOENT"
    assert found["mine"] == "y"
    assert set(found["root"]) <= allowed
    assert (found["tmp"], found["shm"]) == ([], [])
    assert set(found["dev"]) == {
        *("null", "zero", "full", "random", "urandom", "shm"),
        *("fd", "stdin", "stdout", "stderr"),
    }
    # a user's Python or checkout may lie below /home
    assert (found["shadow"], found["home"]) == ("ENOENT", "worked" if "home" in allowed else "ENOENT")
    assert (found["write"], found["write usr"]) == ("EROFS", "EROFS")
    assert found["python"] == "worked"


def test_workspace_may_lie_below_var_tmp(owner: Identity | None) -> None:
    """There the private root has a link to its /tmp, which must not lead out of it while it is built."""
    with scratch("/var/tmp") as parent:
        workspace = make_workspace(parent, owner)
        Path(workspace, "work", "mine").write_text("y")
        mine = inside(workspace, layers_for("mount_namespace"), Path(workspace, "work", "mine").read_text)
        assert mine == "y"
        assert not Path("/tmp", Path(parent).name).exists()


def test_scratch_space_is_private_and_bounded(workspace_dir: str) -> None:
    def look() -> list[Any]:
        Path("/tmp/note").write_text("x")
        Path("/dev/shm/note").write_text("x")
        size = os.statvfs("/dev/shm")
        return [size.f_blocks * size.f_frsize, os.path.exists("/var/tmp/note")]

    size, linked = inside(workspace_dir, layers_for("mount_namespace"), look)
    assert size == (1 << 30) // 4
    assert linked
    assert not Path("/tmp/note").exists()
    assert not Path("/dev/shm/note").exists()


def test_process_namespace_shows_the_jobs_own_processes_only(workspace_dir: str) -> None:
    launcher_pid = os.getpid()

    def look() -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "seen": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
            "kill": outcome(lambda: os.kill(launcher_pid, 0)) if launcher_pid > 50 else "ESRCH",
            "loginuid": outcome(lambda: Path("/proc/self/loginuid").write_text("0")),
        }

    found = inside(workspace_dir, layers_for("mount_namespace", "pid_namespace"), look)
    assert found["pid"] == 2, "the init is 1, the kernel an ordinary process"
    assert found["seen"] == [1, 2]
    assert found["kill"] == "ESRCH"
    assert found["loginuid"] in ("EROFS", "EACCES", "ENOENT")


def test_init_shows_nothing_of_the_host(workspace_dir: str) -> None:
    """Its ``net`` and ``mountinfo`` are those of the host, and may be read by whoever sees the process."""
    layers = layers_for("mount_namespace", "pid_namespace", "network_namespace")
    names = ("1/net/unix", "1/mountinfo", "1/cgroup", "self/net/unix", "self/mountinfo")
    found = inside(workspace_dir, layers, lambda: [name for name in names if Path("/proc", name).exists()])
    assert found == ["self/net/unix", "self/mountinfo"]


def test_namespace_of_processes_does_not_need_a_hidden_init(
    workspace_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "mount", mount_not_on_a_process)
    found = inside(workspace_dir, layers_for("mount_namespace", "pid_namespace"), lambda: os.listdir("/proc"))
    assert {name for name in found if name.isdigit()} == {"1", "2"}


def test_init_is_the_workspaces_user_with_no_right_and_nothing_open(workspace_dir: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("without root the init has no other user to become")
    leaked, held = os.pipe()
    os.set_inheritable(leaked, True)
    os.set_inheritable(held, True)

    def look() -> dict[str, Any]:
        syscalls.unmount("/proc/1", 0)
        deadline = time.monotonic() + 60
        numbers: list[str] = []
        # while its program is loaded, a library is open, and before that the environment is the loader's
        while numbers != ["0", "1", "2"] or Path("/proc/1/environ").read_text():
            assert time.monotonic() < deadline, numbers
            time.sleep(0.01)
            numbers = sorted(os.listdir("/proc/1/fd"))
        lines = dict(line.split(":\t", 1) for line in Path("/proc/1/status").read_text().splitlines() if ":\t" in line)
        return {
            "ids": sorted({*lines["Uid"].split(), *lines["Gid"].split()}),
            "groups": lines["Groups"].split(),
            "rights": [int(lines[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")],
            "environment": Path("/proc/1/environ").read_text(),
            "open": numbers,
            "ends": os.readlink("/proc/1/fd/0").split(":")[0],
        }

    layers = layers_for("mount_namespace", "pid_namespace") | {"identity"}
    assert inside(workspace_dir, layers, look, identity=PLAIN_USER) == {
        "ids": [str(PLAIN_USER.uid)],
        "groups": [],
        "rights": [0, 0, 0, 0],
        "environment": "",
        "open": ["0", "1", "2"],
        "ends": "pipe",
    }
    os.close(leaked)
    os.close(held)


def test_kernel_dies_of_its_own_signal_and_orphans_are_reaped(workspace_dir: str, owner: Identity | None) -> None:
    code = MAKE_ORPHANS + "import signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    layers = layers_for("mount_namespace", "pid_namespace") | FLAGS | {"rlimits"}
    if owner is not None:
        layers |= {"identity"}
    run = run_confined(lambda: make_plan(workspace_dir, layers, owner), code)
    assert run.output == "[1, 2]\n"
    assert os.WTERMSIG(run.status) == signal.SIGKILL


def test_no_network_device_but_loopback_and_that_is_down(workspace_dir: str) -> None:
    def look() -> list[Any]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            return [[name for _, name in socket.if_nameindex()], outcome(lambda: probe.connect(("127.0.0.1", 9)))]

    devices, reached = inside(workspace_dir, layers_for("network_namespace"), look)
    assert "lo" in devices
    assert not {"eth0", "ens3", "enp1s0"} & set(devices)
    assert reached == "ENETUNREACH"


def test_only_allowed_loopback_keeps_the_hosts_network(workspace_dir: str) -> None:
    host = os.readlink("/proc/self/ns/net")

    def look() -> str:
        return os.readlink("/proc/self/ns/net")

    layers = layers_for("network_namespace", "uts_namespace")
    assert inside(workspace_dir, layers, look, allow_network=True, allow_loopback=True) == host
    assert inside(workspace_dir, layers, look, allow_network=True) != host
    assert inside(workspace_dir, layers, look) != host


@pytest.mark.parametrize(("layer", "name"), [("ipc_namespace", "ipc"), ("uts_namespace", "uts")])
def test_ipc_and_host_name_are_the_jobs_own(workspace_dir: str, layer: str, name: str) -> None:
    def look() -> list[str]:
        return [os.readlink(f"/proc/self/ns/{name}"), socket.gethostname()]

    own, host_name = inside(workspace_dir, layers_for(layer), look)
    assert own != os.readlink(f"/proc/self/ns/{name}")
    assert (host_name == "transform") == (name == "uts")


def test_plain_user_gets_all_of_them_in_a_user_namespace() -> None:
    with scratch() as directory:
        user = PLAIN_USER if os.geteuid() == 0 else None
        workspace_dir = make_workspace(directory, user)
        if user is not None:
            os.chown(workspace_dir, user.uid, user.gid)

        def child() -> Any:
            if user is not None:
                become(user)
            plan = make_plan(workspace_dir, frozenset({"user_namespace"}))
            found = attempt(lambda: try_namespace(plan, "user_namespace"))
            if not found.succeeded:
                return found.why
            return inside(workspace_dir, NAMESPACES | {"user_namespace"}, lambda: [os.getpid(), os.getuid()])

        found = in_child(child)
        if isinstance(found, str):
            pytest.skip(f"this host gives no user namespace: {found}")
        assert found == [2, user.uid if user is not None else os.getuid()]


def test_rights_over_the_namespaces_end_with_the_confinement() -> None:
    """A user namespace gives every right inside; a kernel that is not an exec away from it must give them up."""
    user = PLAIN_USER if os.geteuid() == 0 else None
    layers = frozenset({"user_namespace", "mount_namespace", "pid_namespace"})
    launcher_pid = os.getpid()

    def sets() -> list[int]:
        lines = Path("/proc/self/status").read_text().splitlines()
        return [int(line.split()[1], 16) for line in lines if line.startswith(("CapPrm", "CapEff"))]

    with scratch() as directory:
        workspace_dir = make_workspace(directory, user)

        def look() -> list[list[int]]:
            before = sets()
            # Without parent_death, which waits for the intermediate process; here that one waits for the answer.
            confine(make_plan(workspace_dir, layers, parent_pid=launcher_pid))
            return [before, sets()]

        def child() -> Any:
            if user is not None:
                become(user)
            plan = make_plan(workspace_dir, frozenset({"user_namespace"}))
            found = attempt(lambda: try_namespace(plan, "user_namespace"))
            return inside(workspace_dir, layers, look) if found.succeeded else found.why

        found = in_child(child)
        if isinstance(found, str):
            pytest.skip(f"this host gives no user namespace: {found}")
        before, after = found
        assert all(before)
        assert after == [0, 0]


def test_namespace_that_cannot_be_had_is_an_error_that_names_it(workspace_dir: str) -> None:
    def child() -> list[str]:
        deny_namespaces()
        try:
            enter_namespaces(make_plan(workspace_dir, frozenset({"pid_namespace"}), parent_pid=os.getppid()))
        except SandboxError as error:
            return [error.layer]
        return []

    assert in_child(child) == ["pid_namespace"]


def test_end_of_the_init_ends_every_process_of_the_namespace(workspace_dir: str) -> None:
    def launcher() -> bool:
        processes.become_subreaper()
        plan = make_plan(workspace_dir, layers_for("pid_namespace") | FLAGS)
        reader, writer = os.pipe()
        alive, held = os.pipe()
        liveness_pipe, _end = os.pipe()
        intermediate = fork()
        if intermediate == 0:
            entered = enter_namespaces(plan, liveness_pipe)
            if os.fork() == 0:
                os.close(alive)
                os.setsid()
                if os.fork() == 0:
                    signal.alarm(20)
                    os.write(writer, f"init {entered.init_pid}".encode())
                    signal.pause()
                signal.pause()
            os._exit(0)
        os.close(held)
        os.waitpid(intermediate, 0)
        init_pid = int(os.read(reader, 100).split()[1])
        os.kill(init_pid, signal.SIGKILL)
        return os.read(alive, 1) == b""  # the end of file comes when the last holder is gone

    assert in_child(launcher) is True


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace without a user namespace takes root")
def test_end_of_another_child_is_not_lost_while_an_init_is_started(workspace_dir: str) -> None:
    """A process that ignores SIGCHLD, even for a moment, is not told of a child that ends in that moment."""

    def launcher() -> list[int]:
        plan = make_plan(workspace_dir, layers_for("pid_namespace") | FLAGS)
        liveness_pipe, end = os.pipe()
        codes = []
        for number in range(100):
            ending = os.fork()
            if ending == 0:
                os._exit(7)
            init_pid = pid_namespace_init.start_init(plan, liveness_pipe)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(ending, 0)[1]))
            if number % 2:
                os.kill(init_pid, signal.SIGKILL)
                codes.append(os.waitstatus_to_exitcode(os.waitpid(init_pid, 0)[1]))
        os.close(end)
        return [codes.count(7), codes.count(-signal.SIGKILL)]

    assert in_child(launcher) == [100, 50]


def refuse_call(name: str) -> None:
    """Refuse one system call from now on."""
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.seccomp_filter(seccomp.assemble([refuse((name,), errno.EPERM)]))


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace without a user namespace takes root")
@pytest.mark.parametrize("broken", ["", "unshare", "setns", "env"])
def test_trial_of_an_init_leaves_later_children_in_our_namespace(broken: str) -> None:
    """A host that refuses the way back would else be found out by the first kernel, with no way to go on."""

    def launcher() -> list[Any]:
        if broken == "env":
            pid_namespace_init._IGNORING_SIGCHLD = ("env", "--no-such-option")  # type: ignore[misc]
        elif broken:
            refuse_call(broken)
        here = pid_namespace_init._own_namespace()
        tried = pid_namespace_init.can_start_init(PLAIN_USER)
        return [tried.succeeded, tried.layer, pid_namespace_init._fork_and_look(here), len(os.listdir("/proc/self/fd"))]

    before = len(os.listdir("/proc/self/fd"))
    succeeded, layer, is_here, after = in_child(launcher)
    assert succeeded == (not broken)
    assert is_here
    assert after <= before + 1  # the pipe of the answer
    if broken in ("unshare", "env"):
        assert layer == "pid_namespace"


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace without a user namespace takes root")
def test_stranded_process_raises_an_error_of_its_own_class(workspace_dir: str) -> None:
    """Neither as of a kernel that could not start (SandboxError) nor as of a call that failed (OSError)."""

    def launcher() -> list[Any]:
        refuse_call("setns")
        plan = make_plan(workspace_dir, layers_for("pid_namespace") | FLAGS)
        liveness_pipe, _end = os.pipe()
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(pid_namespace_init.StrandedError):
            pid_namespace_init.start_init(plan, liveness_pipe)
        return [len(os.listdir("/proc/self/fd")) - before]

    assert in_child(launcher) == [0]


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace without a user namespace takes root")
def test_fork_into_a_namespace_whose_init_is_ending_is_that_namespaces_failure(workspace_dir: str) -> None:
    """And none of the process that forks, which is well."""

    def launcher() -> list[str]:
        plan = make_plan(workspace_dir, layers_for("pid_namespace") | FLAGS)
        liveness_pipe, _end = os.pipe()
        here = pid_namespace_init._own_namespace()
        init_pid = pid_namespace_init.start_init(plan, liveness_pipe)
        try:
            with pid_namespace_init.children_in(os.pidfd_open(init_pid)):
                os.kill(init_pid, signal.SIGKILL)
                os.waitid(os.P_PID, init_pid, os.WEXITED | os.WNOWAIT)
                os.fork()
        except SandboxError as error:
            os.waitpid(init_pid, 0)
            return [error.layer, str(pid_namespace_init._fork_and_look(here))]
        return []

    assert in_child(launcher) == ["pid_namespace", "True"]


def test_interpreter_behind_a_closed_directory_is_reachable_inside(scratch_dir: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("a directory that only root may enter takes root to make")
    closed = Path(scratch_dir, "closed")
    (closed / "lib").mkdir(parents=True)
    (closed / "lib" / "module.py").write_text("x = 1")
    (closed / "link").symlink_to("lib")
    closed.chmod(0o700)
    owner = PLAIN_USER
    workspace_dir = make_workspace(scratch_dir, owner)
    path = str(closed / "link" / "module.py")
    tried = f"try: print(open({path!r}).read())\nexcept OSError as e: print(type(e).__name__)"
    readable = (*readable_paths.default_read_only_paths(), str(closed / "link"))

    def run(layers: frozenset[str]) -> str:
        plan = lambda: make_plan(workspace_dir, layers | FLAGS | {"identity"}, owner, read_only_paths=readable)  # noqa: E731
        return run_confined(plan, tried).output

    assert run(frozenset({"mount_namespace"})) == "x = 1\n"
    assert "x = 1" not in run(frozenset())
