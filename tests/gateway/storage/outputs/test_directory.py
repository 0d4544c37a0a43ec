"""Results land in the caller's directory whole, below the allowed roots only, and through no link."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from gateway.core.directories import open_below, output_directory
from gateway.core.errors import FailureCode, JobFailed
from gateway.core.settings import Settings
from gateway.storage.outputs.directory import deliver_files
from gateway.storage.outputs.job_files import OpenOutput, open_output
from tests.gateway.storage.conftest import files_in, open_descriptors


async def refused(directory: Path, root: Path) -> str:
    with pytest.raises(JobFailed) as caught:
        await deliver_files(directory, Settings(working_dir_roots=(root,)), {"stdout.log": b"x"})
    assert caught.value.code is FailureCode.OUTPUT_UPLOAD_FAILED
    return caught.value.message


async def test_files_replace_older_ones_and_leave_no_draft(tmp_path: Path) -> None:
    target = tmp_path / "root" / "deep" / "er"
    target.mkdir(parents=True)
    (target / "output.csv").write_bytes(b"old and longer")
    (tmp_path / "made").write_bytes(b"a,b\n1,2\n")
    with open_output(tmp_path / "made", owner_uid=None, max_bytes=100) as output:
        files: dict[str, OpenOutput | bytes] = {"output.csv": output, "stdout.log": b"out\n", "stderr.log": b""}
        await deliver_files(target, Settings(working_dir_roots=(tmp_path / "other", tmp_path / "root")), files)
    found = {path.name: path.read_bytes() for path in target.iterdir()}
    assert found == {"output.csv": b"a,b\n1,2\n", "stdout.log": b"out\n", "stderr.log": b""}
    assert (target / "output.csv").stat().st_mode & 0o777 == 0o644


async def test_link_under_the_files_name_is_replaced_and_its_target_untouched(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "precious").write_text("p")
    (tmp_path / "root" / "stdout.log").symlink_to(tmp_path / "precious")
    await deliver_files(tmp_path / "root", Settings(working_dir_roots=(tmp_path / "root",)), {"stdout.log": b"x"})
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
    assert open_descriptors() <= before


def test_file_is_opened_below_a_root_with_its_size(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"123")
    fd, size = open_below(tmp_path / "a" / "b", (tmp_path,))
    with os.fdopen(fd, "rb") as file:
        assert (size, file.read()) == (3, b"123")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary directory."""
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    return tmp_path / "t"


def refusal(directory: Path, settings: Settings) -> str:
    with pytest.raises(OSError) as caught, output_directory(directory, settings):  # noqa: PT011 - the text counts
        pass
    return str(caught.value.strerror)


async def test_on_loopback_a_directory_below_the_temporary_one_is_made_for_the_gateway_alone(temporary: Path) -> None:
    settings = Settings(state_dir=temporary / "state")
    await deliver_files(temporary / "a" / "b", settings, {"stdout.log": b"x"})
    await deliver_files(temporary / "a" / "b", settings, {"stdout.log": b"again"})
    assert (temporary / "a" / "b" / "stdout.log").read_bytes() == b"again"
    assert {path.stat().st_mode & 0o777 for path in (temporary / "a", temporary / "a" / "b")} == {0o700}


def test_other_places_than_below_the_temporary_directory_are_refused(temporary: Path, tmp_path: Path) -> None:
    settings = Settings(state_dir=temporary / "state")
    (temporary / "link").symlink_to(tmp_path)
    (temporary / "file").touch()
    assert "WORKING_DIR_ROOTS" in refusal(tmp_path / "elsewhere", settings)
    assert "'..'" in refusal(temporary / "a" / ".." / ".." / "elsewhere", settings)
    assert "name a directory in it" in refusal(temporary, settings)
    assert "symbolic link 'link'" in refusal(temporary / "link" / "elsewhere", settings)
    assert "Not a directory" in refusal(temporary / "file", settings)
    assert "STATE_DIR" in refusal(temporary / "state" / "jobs", settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t"]
    assert sorted(path.name for path in temporary.iterdir()) == ["file", "link"]


def test_directory_of_another_user_is_refused_with_the_remedy(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (temporary / "work").mkdir()
    owner = (temporary / "work").stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    text = refusal(temporary / "work" / "below", Settings(state_dir=temporary / "state"))
    assert f"'work' belongs to user {owner}, but the gateway runs as user {owner + 1}" in text
    assert "name a new directory" in text
    assert list((temporary / "work").iterdir()) == []


@pytest.mark.parametrize("changes", [{"host": "0.0.0.0"}, {"working_dir_roots": (Path("/usr"),)}])
def test_beyond_loopback_or_with_roots_the_temporary_directory_is_closed(
    temporary: Path, changes: dict[str, Any]
) -> None:
    assert "WORKING_DIR_ROOTS" in refusal(temporary / "work", Settings(state_dir=temporary / "state", **changes))
    assert list(temporary.iterdir()) == []
