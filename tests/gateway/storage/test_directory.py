"""Results land in the caller's directory whole, below the allowed roots only, and through no link."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.errors import FailureCode, JobFailed
from gateway.storage.artifacts import OpenOutput, open_output
from gateway.storage.directory import deliver_files, open_below
from tests.gateway.storage.conftest import files_in, open_descriptors


async def refused(directory: Path, root: Path) -> str:
    with pytest.raises(JobFailed) as caught:
        await deliver_files(directory, (root,), {"stdout.log": b"x"})
    assert caught.value.code is FailureCode.OUTPUT_UPLOAD_FAILED
    return caught.value.message


async def test_files_replace_what_was_there_and_leave_no_draft(tmp_path: Path) -> None:
    target = tmp_path / "root" / "deep" / "er"
    target.mkdir(parents=True)
    (target / "output.csv").write_bytes(b"old and longer")
    (tmp_path / "made").write_bytes(b"a,b\n1,2\n")
    with open_output(tmp_path / "made", owner_uid=None, max_bytes=100) as output:
        files: dict[str, OpenOutput | bytes] = {"output.csv": output, "stdout.log": b"out\n", "stderr.log": b""}
        await deliver_files(target, (tmp_path / "other", tmp_path / "root"), files)
    found = {path.name: path.read_bytes() for path in target.iterdir()}
    assert found == {"output.csv": b"a,b\n1,2\n", "stdout.log": b"out\n", "stderr.log": b""}
    assert (target / "output.csv").stat().st_mode & 0o777 == 0o644


async def test_link_under_the_files_name_is_replaced_and_its_target_untouched(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "precious").write_text("p")
    (tmp_path / "root" / "stdout.log").symlink_to(tmp_path / "precious")
    await deliver_files(tmp_path / "root", (tmp_path / "root",), {"stdout.log": b"x"})
    assert (tmp_path / "precious").read_text() == "p"
    assert not (tmp_path / "root" / "stdout.log").is_symlink()
    assert (tmp_path / "root" / "stdout.log").read_bytes() == b"x"


async def test_directory_outside_of_the_roots_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (tmp_path / "rootless").mkdir()
    (root / "link").symlink_to(tmp_path / "rootless")
    assert "not below" in await refused(tmp_path / "rootless", root)
    assert "'..'" in await refused(root / "in" / ".." / ".." / "rootless", root)
    assert "absolute" in await refused(Path("in"), root)
    assert "symbolic link 'link'" in await refused(root / "link", root)
    assert "No such file" in await refused(root / "gone", root)
    assert list((tmp_path / "rootless").iterdir()) == []


async def test_failed_delivery_leaves_neither_draft_nor_descriptor(tmp_path: Path) -> None:
    (tmp_path / "stdout.log").mkdir()  # a directory cannot be replaced by a file
    before = open_descriptors()
    assert "Is a directory" in await refused(tmp_path, tmp_path)
    assert files_in(tmp_path) == ["stdout.log"]
    assert open_descriptors() == before


def test_file_is_opened_below_a_root_with_its_size(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"123")
    fd, size = open_below(tmp_path / "a" / "b", (tmp_path,))
    with os.fdopen(fd, "rb") as file:
        assert (size, file.read()) == (3, b"123")
