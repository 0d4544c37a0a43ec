# ruff: noqa: PTH101, PTH102, PTH108
from __future__ import annotations

import os
from pathlib import Path

import pytest

from kernel_spec.sandbox.accounting import disk
from tests.kernel_spec.sandbox.children import in_child, outcome

MIB = 1 << 20


def test_space_is_counted_in_blocks_wherever_it_lies(workspace_dir: str) -> None:
    before = disk.measure(workspace_dir)
    Path(workspace_dir, "work", "a", "b").mkdir(parents=True)
    Path(workspace_dir, "work", "a", "b", "full").write_bytes(bytes(3 * MIB))
    Path(workspace_dir, "out", "full").write_bytes(bytes(2 * MIB))
    os.truncate(Path(workspace_dir, "out", "full"), 1 << 40)  # sparse: a length, not space
    after = disk.measure(workspace_dir)
    assert 5 * MIB <= after.used_bytes - before.used_bytes < 5.2 * MIB
    assert after.entries == before.entries + 4
    assert after.complete


def test_links_are_neither_followed_nor_counted_twice(workspace_dir: str, scratch_dir: str) -> None:
    outside = Path(scratch_dir, "outside")
    outside.write_bytes(bytes(9 * MIB))
    work = Path(workspace_dir, "work")
    (work / "file").write_bytes(bytes(MIB))
    os.link(work / "file", work / "second")
    os.link(work / "file", Path(workspace_dir, "out", "third"))
    (work / "link").symlink_to(outside)
    (work / "root").symlink_to("/")
    for directories in ((workspace_dir,), (str(work), f"{workspace_dir}/out")):
        used = disk.measure(*directories)
        assert MIB <= used.used_bytes < 1.2 * MIB
        assert used.complete


def test_removed_file_counts_while_a_process_holds_it(workspace_dir: str) -> None:
    def child() -> list[int]:
        with Path(workspace_dir, "work", "gone").open("wb") as file:
            os.unlink(file.name)
            file.write(bytes(4 * MIB))
            file.flush()
            unknown = disk.measure(workspace_dir)
            known = disk.measure(workspace_dir, pids=[os.getpid()])
        return [unknown.used_bytes, known.used_bytes]

    unknown, known = in_child(child)
    assert known - unknown == 4 * MIB


@pytest.mark.parametrize(("depth", "complete"), [(disk.MOST_LEVELS - 2, True), (400, False)])
def test_depth_hides_nothing(workspace_dir: str, depth: int, complete: bool) -> None:
    def child() -> list[object]:
        os.chdir(f"{workspace_dir}/work")
        for _ in range(depth):
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
        Path("bottom").write_bytes(bytes(2 * MIB))
        used = disk.measure(f"{workspace_dir}/work")
        return [used.used_bytes >= 2 * MIB, used.complete]

    assert in_child(child) == [complete, complete]


def test_directories_that_a_job_moves_meanwhile_hide_nothing(
    workspace_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Path(workspace_dir, "work")
    (work / "elsewhere").mkdir()
    for number in range(5):
        (work / f"{number}" / "moved").mkdir(parents=True)
        (work / f"{number}" / "file").write_bytes(bytes(MIB))
    open_below = disk._open_below

    def open_and_move(parent_fd: int, name: str) -> int | None:
        opened = open_below(parent_fd, name)
        if name == "moved":
            os.rename(name, work / "elsewhere" / os.urandom(4).hex(), src_dir_fd=parent_fd)
        return opened

    monkeypatch.setattr(disk, "_open_below", open_and_move)
    used = disk.measure(str(work))
    assert used.used_bytes >= 5 * MIB
    assert used.complete


def test_count_stops_at_the_most_entries(workspace_dir: str) -> None:
    for number in range(30):
        Path(workspace_dir, "work", str(number)).touch()
    used = disk.measure(workspace_dir, most_entries=20)
    assert not used.complete
    assert used.entries <= 25


def test_directory_closed_to_us_is_an_error(workspace_dir: str) -> None:
    closed = Path(workspace_dir, "work", "closed")
    closed.mkdir(mode=0)

    def child() -> str:
        if os.geteuid() == 0:
            uid = Path(workspace_dir, "work").stat().st_uid
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.chmod(workspace_dir, 0o750) if os.access(workspace_dir, os.W_OK) else None
        return outcome(lambda: disk.measure(f"{workspace_dir}/work"))

    if os.geteuid() == 0:
        os.chown(closed, Path(workspace_dir, "work").stat().st_uid, -1)
    assert in_child(child) == "EACCES"
    closed.rmdir()


def test_workspace_that_is_gone_is_an_error(workspace_dir: str) -> None:
    with pytest.raises(FileNotFoundError):
        disk.measure(workspace_dir + "x")
