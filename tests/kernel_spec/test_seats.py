from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_spec import seats
from kernel_spec.environment import base_environment, kernel_environment
from kernel_spec.removal import removal_steps, remove_tree
from kernel_spec.seats import SeatError, Seats, SeatUser, lease_users, shared_users
from tests.kernel_spec.sandbox.children import LEAST_CAPABILITIES, PLAIN_USER, become, in_child, keep_capabilities

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving seats users of their own takes root")


@pytest.fixture
def short_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # pytest's own directories are too deep for sockets
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="ts-", dir="/tmp"))
    yield path
    remove_tree(path)


def mode_of(path: str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def test_seat_directories_have_the_agreed_modes(short_dir: Path) -> None:
    kept = Seats(short_dir / "seats", shared_users(1), os.geteuid())
    kept.open()
    _, seat = kept.take()
    found = {name: mode_of(getattr(seat, f"{name}_dir")) for name in ("seat", "ipc", "inputs", "work", "out")}
    assert found == {"seat": 0o750, "ipc": 0o2770, "inputs": 0o2750, "work": 0o700, "out": 0o2770}
    assert mode_of(str(short_dir / "seats")) == 0o711
    kept.close()


@needs_root
def test_seat_of_its_own_user_belongs_to_that_user_and_inputs_to_the_gateway(short_dir: Path) -> None:
    users = lease_users(1)
    kept = Seats(short_dir / "seats", users, 4242)
    kept.open()
    try:
        user, seat = kept.take()
        owners = {name: Path(getattr(seat, f"{name}_dir")).stat() for name in ("seat", "ipc", "inputs", "work", "out")}
        assert {name: status.st_uid for name, status in owners.items()} == {
            "seat": 0, "ipc": user.uid, "inputs": 4242, "work": user.uid, "out": user.uid,
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
def test_five_capabilities_make_a_seat_and_remove_what_its_user_closed(short_dir: Path) -> None:
    user = SeatUser(PLAIN_USER.uid, PLAIN_USER.gid)
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
        kept = Seats(short_dir / "seats", [user], 4242)
        kept.open()
        _, seat = kept.take()
        modes = [mode_of(directory) for directory in (seat.ipc_dir, seat.inputs_dir)]
        in_child(lambda: be_the_job(seat.work_dir))
        remove_tree(seat.seat_dir)
        return [f"{mode:o}" for mode in modes] + os.listdir(short_dir / "seats")

    assert in_child(in_a_container) == ["2770", "2750"]


def test_all_seats_taken_is_an_error_and_a_seat_given_back_can_be_taken(short_dir: Path) -> None:
    kept = Seats(short_dir / "seats", shared_users(1), os.geteuid())
    kept.open()
    user, seat = kept.take()
    with pytest.raises(SeatError, match="all 1 seats are taken"):
        kept.take()
    remove_tree(seat.seat_dir)
    kept.give_back(user)
    assert kept.take()[1].name != seat.name
    kept.close()


def test_directory_in_use_by_another_launcher_is_refused(short_dir: Path) -> None:
    first = Seats(short_dir / "seats", shared_users(1), os.geteuid())
    first.open()
    with pytest.raises(SeatError, match="STATE_DIR"):
        Seats(short_dir / "seats", shared_users(1), os.geteuid()).open()
    first.close()


def test_leftovers_of_a_dead_launcher_are_swept_and_nothing_else(short_dir: Path) -> None:
    root = short_dir / "seats"
    (root / "deadbeef" / "work" / "deep").mkdir(parents=True)
    (root / "probe-abc").mkdir()
    (root / "not-ours").mkdir()
    kept = Seats(root, shared_users(1), os.geteuid())
    assert sorted(kept.open()) == ["deadbeef", "probe-abc"]
    assert [entry.name for entry in root.iterdir()] == ["not-ours"]
    kept.close()


@pytest.mark.parametrize(("path", "says"), [("/" + "x" * 90, "bytes too long"), ("relative", "absolute path")])
def test_state_dir_that_cannot_hold_sockets_is_refused_by_name(path: str, says: str) -> None:
    with pytest.raises(SeatError, match=f"STATE_DIR.*{says}"):
        seats.check_socket_path(Path(path))


def test_longest_state_dir_that_is_accepted_can_hold_a_socket(short_dir: Path) -> None:
    import socket

    spare = seats.LONGEST_SOCKET_PATH_BYTES - len(os.fsencode(short_dir / "x" / "00000000" / "ipc" / "k-1"))
    root = short_dir / ("x" * (spare + 1))
    seats.check_socket_path(root)
    with pytest.raises(SeatError):
        seats.check_socket_path(root.with_name(root.name + "x"))
    place = root / "00000000" / "ipc" / "k-1"
    place.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))


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
    (short_dir / "seat").symlink_to(short_dir / "target")
    with pytest.raises(NotADirectoryError):
        remove_tree(short_dir / "seat")
    assert (short_dir / "target").is_dir()


def test_removal_copes_with_deep_wide_closed_and_odd_entries(short_dir: Path) -> None:
    seat = short_dir / "seat"
    seat.mkdir()
    deep = os.open(seat, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    for number in range(600):
        (seat / f"file-{number}").touch()
    os.mkfifo(seat / "fifo")
    (seat / "closed" / "inner").mkdir(parents=True)
    (seat / "closed" / "inner" / "file").touch()
    (seat / "closed" / "inner").chmod(0)
    (seat / "closed").chmod(0)
    (seat / os.fsdecode(b"bytes-\xff")).touch()
    steps = list(removal_steps(seat))
    assert not seat.exists()
    assert steps, "a long removal lets others work in between"


def test_removal_of_what_is_not_there_is_done_already(short_dir: Path) -> None:
    remove_tree(short_dir / "absent" / "too")


def test_kernel_environment_holds_nothing_of_the_gateway(short_dir: Path) -> None:
    source = {"AUTH_TOKEN": "secret", "AWS_SECRET_ACCESS_KEY": "secret", "PYTHONPATH": "/evil", "TZ": "Asia/Tokyo"}
    kept = Seats(short_dir / "seats", shared_users(1), os.geteuid())
    kept.open()
    _, seat = kept.take()
    environment = kernel_environment(seat, style="job", has_log=True, source=source)
    assert "secret" not in environment.values()
    assert "PYTHONPATH" not in environment
    assert environment["TZ"] == "Asia/Tokyo"
    assert environment["TRANSFORM_LOG_FD"] == "3"
    assert {environment[name] for name in ("HOME", "TMPDIR", "TEMP")} == {seat.work_dir}
    assert environment["IPYTHONDIR"].startswith(seat.work_dir)
    kept.close()


def test_environment_pins_pools_that_do_not_survive_a_fork() -> None:
    environment = base_environment({})
    assert environment["OPENBLAS_NUM_THREADS"] == environment["OMP_NUM_THREADS"] == "1"
    assert environment["ARROW_DEFAULT_MEMORY_POOL"] == "system"
    assert "background_thread:false" in environment["JE_ARROW_MALLOC_CONF"]
