from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_spec.kernel.environment import base_environment, kernel_environment
from kernel_spec.launcher import workspaces
from kernel_spec.launcher.user_leases import WorkspaceError, WorkspaceUser, lease_users, shared_users
from kernel_spec.launcher.workspaces import WorkspacePool
from kernel_spec.linux.rmtree import removal_steps, remove_tree
from tests.kernel_spec.sandbox.children import LEAST_CAPABILITIES, PLAIN_USER, become, in_child, keep_capabilities

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving workspaces users of their own takes root")


@pytest.fixture
def short_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # pytest's own directories are too deep for sockets
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="ts-", dir="/tmp"))
    yield path
    remove_tree(path)


def mode_of(path: str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def test_workspace_directories_have_the_agreed_modes(short_dir: Path) -> None:
    kept = WorkspacePool(short_dir / "workspaces", shared_users(1), os.geteuid())
    kept.open()
    _, workspace = kept.take()
    found = {name: mode_of(getattr(workspace, f"{name}_dir")) for name in ("workspace", "ipc", "inputs", "work", "out")}
    assert found == {"workspace": 0o750, "ipc": 0o2770, "inputs": 0o2750, "work": 0o700, "out": 0o2770}
    assert mode_of(str(short_dir / "workspaces")) == 0o711
    kept.close()


@needs_root
def test_workspace_of_its_own_user_belongs_to_that_user_and_inputs_to_the_gateway(short_dir: Path) -> None:
    users = lease_users(1)
    kept = WorkspacePool(short_dir / "workspaces", users, 4242)
    kept.open()
    try:
        user, workspace = kept.take()
        owners = {
            name: Path(getattr(workspace, f"{name}_dir")).stat()
            for name in ("workspace", "ipc", "inputs", "work", "out")
        }
        assert {name: status.st_uid for name, status in owners.items()} == {
            "workspace": 0, "ipc": user.uid, "inputs": 4242, "work": user.uid, "out": user.uid,
        }  # fmt: skip
        assert {status.st_gid for status in owners.values()} == {user.gid}
    finally:
        kept.close()


@needs_root
def test_two_launchers_never_lease_the_same_user() -> None:
    first, second = lease_users(3), lease_users(3)
    try:
        assert not {user.uid for user in first} & {user.uid for user in second}
    finally:
        for user in (*first, *second):
            assert user.lease is not None
            Path(f"/proc/self/fd/{user.lease}").readlink().unlink()
            os.close(user.lease)


@needs_root
def test_containers_of_one_machine_lease_different_users_though_they_share_no_leases() -> None:
    leased = [lease_users(3, host=f"container-{number}") for number in range(4)]
    uids = [user.uid for users in leased for user in users]
    for users in leased:
        for user in users:
            assert user.lease is not None
            Path(f"/proc/self/fd/{user.lease}").readlink().unlink()
            os.close(user.lease)
    # the names alone keep them apart: three in a row each, and no group begins where another would have gone on
    starts = [users[0].uid for users in leased]
    assert len({*uids}) == 12
    assert all(abs(one - other) > 3 for one in starts for other in starts if one != other)


@needs_root
def test_five_capabilities_suffice_to_make_and_remove_a_workspace(short_dir: Path) -> None:
    user = WorkspaceUser(PLAIN_USER.uid, PLAIN_USER.gid)
    short_dir.chmod(0o711)

    def be_the_job(work_dir: str) -> None:
        become(PLAIN_USER)
        for name, mode in (("sticky", 0o1777), ("closed", 0)):
            inner = Path(work_dir, name, "inner")
            inner.mkdir(parents=True)
            (inner / "file").touch()
            inner.chmod(mode)
            inner.parent.chmod(mode)

    def in_a_container() -> list[str]:
        keep_capabilities(LEAST_CAPABILITIES)
        kept = WorkspacePool(short_dir / "workspaces", [user], 4242)
        kept.open()
        _, workspace = kept.take()
        modes = [mode_of(directory) for directory in (workspace.ipc_dir, workspace.inputs_dir)]
        in_child(lambda: be_the_job(workspace.work_dir))
        remove_tree(workspace.workspace_dir)
        return [f"{mode:o}" for mode in modes] + os.listdir(short_dir / "workspaces")

    assert in_child(in_a_container) == ["2770", "2750"]


def test_all_workspaces_taken_is_an_error_and_a_workspace_given_back_can_be_taken(short_dir: Path) -> None:
    kept = WorkspacePool(short_dir / "workspaces", shared_users(1), os.geteuid())
    kept.open()
    user, workspace = kept.take()
    with pytest.raises(WorkspaceError, match="all 1 workspaces are taken"):
        kept.take()
    remove_tree(workspace.workspace_dir)
    kept.release(user)
    assert kept.take()[1].name != workspace.name
    kept.close()


def test_directory_in_use_by_another_launcher_is_refused(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspaces, "LOCK_SECONDS", 0.1)
    first = WorkspacePool(short_dir / "workspaces", shared_users(1), os.geteuid())
    first.open()
    with pytest.raises(WorkspaceError, match="STATE_DIR"):
        WorkspacePool(short_dir / "workspaces", shared_users(1), os.geteuid()).open()
    first.close()


def test_leftovers_of_a_dead_launcher_are_swept_and_nothing_else(short_dir: Path) -> None:
    root = short_dir / "workspaces"
    (root / "deadbeef" / "work" / "deep").mkdir(parents=True)
    (root / "probe-abc").mkdir()
    (root / "try-abc").mkdir()
    (root / "not-ours").mkdir()
    kept = WorkspacePool(root, shared_users(1), os.geteuid())
    assert sorted(kept.open()) == ["deadbeef", "probe-abc", "try-abc"]
    assert [entry.name for entry in root.iterdir()] == ["not-ours"]
    kept.close()


def test_leftover_that_cannot_be_removed_keeps_no_launcher_from_starting(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("0badcafe", "deadbeef"):
        (short_dir / name).mkdir()

    def remove(path: Path) -> None:
        if path.name == "0badcafe":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        remove_tree(path)

    monkeypatch.setattr(workspaces, "remove_tree", remove)
    pool = WorkspacePool(short_dir, shared_users(1), os.getuid())
    try:
        assert pool.open() == ["deadbeef"]
        assert f"{short_dir}/0badcafe could not be removed" in capsys.readouterr().err
    finally:
        pool.close()


def test_workspaces_of_the_previous_version_are_swept_and_their_directory_goes(short_dir: Path) -> None:
    former = short_dir / "seats"
    (former / "deadbeef" / "work" / "deep").mkdir(parents=True)
    ended: list[str] = []
    pool = WorkspacePool(short_dir / "workspaces", shared_users(1), os.geteuid())
    assert pool.open(ended.append) == ["deadbeef"]
    assert ended == [str(former / "deadbeef")]
    assert not former.exists()
    pool.close()


def test_foreign_files_in_the_directory_of_the_previous_version_stay(short_dir: Path) -> None:
    former = short_dir / "seats"
    (former / "not-ours").mkdir(parents=True)
    (former / "deadbeef").mkdir()
    pool = WorkspacePool(short_dir / "workspaces", shared_users(1), os.geteuid())
    pool.open()
    assert [entry.name for entry in former.iterdir()] == ["not-ours"]
    pool.close()


def test_directory_that_a_launcher_of_the_previous_version_uses_is_refused(short_dir: Path) -> None:
    former = short_dir / "seats"
    (former / "deadbeef").mkdir(parents=True)
    descriptor = os.open(former, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    pool = WorkspacePool(short_dir / "workspaces", shared_users(1), os.geteuid())
    with pytest.raises(WorkspaceError, match="in use by another gateway"):
        pool.open()
    assert (former / "deadbeef").is_dir()
    os.close(descriptor)
    pool.close()


def test_launcher_that_ends_is_waited_for(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former = WorkspacePool(short_dir / "workspaces", shared_users(1), os.geteuid())
    former.open()
    left = Path(former.take()[1].workspace_dir)
    monkeypatch.setattr(workspaces.time, "sleep", lambda _seconds: former.close())
    pool = WorkspacePool(short_dir / "workspaces", shared_users(1), os.geteuid())
    assert pool.open() == [left.name]
    pool.close()


@pytest.mark.parametrize(("path", "says"), [("/" + "x" * 90, "bytes too long"), ("relative", "absolute path")])
def test_state_dir_that_cannot_hold_sockets_is_refused_by_name(path: str, says: str) -> None:
    with pytest.raises(WorkspaceError, match=f"STATE_DIR.*{says}"):
        workspaces.check_socket_path(Path(path))


def test_longest_state_dir_that_is_accepted_can_hold_a_socket(short_dir: Path) -> None:
    import socket

    # ä has two bytes, and a path is measured in bytes
    state_dir = short_dir / "ä"
    state_dir = state_dir.with_name(state_dir.name + "x" * (79 - len(os.fsencode(state_dir))))
    pool = WorkspacePool(state_dir / "workspaces", shared_users(1), os.geteuid())
    pool.open()
    _, workspace = pool.take()
    for number in range(1, 6):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{workspace.ipc_dir}/k-{number}")
    pool.close()
    too_long = state_dir.with_name(state_dir.name + "x") / "workspaces"
    with pytest.raises(WorkspaceError, match=r"STATE_DIR is 1 bytes too long: .* paths of 108 bytes"):
        WorkspacePool(too_long, shared_users(1), os.geteuid()).open()
    assert not too_long.parent.exists()


def test_removal_follows_no_link_out_of_the_directory(short_dir: Path) -> None:
    outside = short_dir / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    inside = short_dir / "inside"
    (inside / "a").mkdir(parents=True)
    (inside / "a" / "link").symlink_to(outside)
    (inside / "direct").symlink_to(outside / "kept")
    remove_tree(inside)
    assert (outside / "kept").read_text() == "x"
    assert not inside.exists()


def test_removal_of_a_link_in_place_of_the_directory_is_refused(short_dir: Path) -> None:
    (short_dir / "target").mkdir()
    (short_dir / "workspace").symlink_to(short_dir / "target")
    with pytest.raises(NotADirectoryError):
        remove_tree(short_dir / "workspace")
    assert (short_dir / "target").is_dir()


def test_removal_copes_with_deep_wide_closed_and_odd_entries(short_dir: Path) -> None:
    workspace = short_dir / "workspace"
    workspace.mkdir()
    deep = os.open(workspace, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    for number in range(600):
        (workspace / f"file-{number}").touch()
    os.mkfifo(workspace / "fifo")
    (workspace / "closed" / "inner").mkdir(parents=True)
    (workspace / "closed" / "inner" / "file").touch()
    (workspace / "closed" / "inner").chmod(0)
    (workspace / "closed").chmod(0)
    (workspace / os.fsdecode(b"bytes-\xff")).touch()
    steps = list(removal_steps(workspace))
    assert not workspace.exists()
    assert steps, "a long removal lets others work in between"


@pytest.mark.parametrize("place", [".", "work"])
def test_removal_of_many_files_in_one_directory_lets_others_work_in_between(short_dir: Path, place: str) -> None:
    directory = short_dir / "workspace" / place
    directory.mkdir(parents=True)
    for number in range(1000):
        (directory / str(number)).touch()
    left = [sum(1 for _ in directory.iterdir()) for _ in removal_steps(short_dir / "workspace")]
    assert len(left) == 3
    assert 400 < left[1] < 600


def test_removal_of_an_absent_tree_succeeds(short_dir: Path) -> None:
    remove_tree(short_dir / "absent" / "too")


def test_kernel_environment_has_no_variable_of_the_gateway(short_dir: Path) -> None:
    source = {"AUTH_TOKEN": "secret", "AWS_SECRET_ACCESS_KEY": "secret", "PYTHONPATH": "/evil", "TZ": "Asia/Tokyo"}
    source |= {"PATH": "/home/me/bin", "TERM": "xterm-color", "FORCE_COLOR": "1"}
    kept = WorkspacePool(short_dir / "workspaces", shared_users(1), os.geteuid())
    kept.open()
    _, workspace = kept.take()
    environment = kernel_environment(workspace, style="job", has_log=True, source=source)
    assert "secret" not in environment.values()
    assert "PYTHONPATH" not in environment
    assert environment["TZ"] == "UTC"
    assert "/home/me/bin" not in environment["PATH"]
    assert (environment["TERM"], environment["NO_COLOR"], "FORCE_COLOR" in environment) == ("dumb", "1", False)
    assert environment["TRANSFORM_LOG_FD"] == "3"
    assert {environment[name] for name in ("HOME", "TMPDIR", "TEMP")} == {workspace.work_dir}
    assert environment["IPYTHONDIR"].startswith(workspace.work_dir)
    kept.close()


def test_environment_pins_pools_that_do_not_survive_a_fork() -> None:
    environment = base_environment({})
    assert environment["OPENBLAS_NUM_THREADS"] == environment["OMP_NUM_THREADS"] == "1"
    assert environment["ARROW_DEFAULT_MEMORY_POOL"] == "system"
    assert "background_thread:false" in environment["JE_ARROW_MALLOC_CONF"]
