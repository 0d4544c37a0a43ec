"""Nothing that a job can put in place of its output makes the gateway read another file or wait."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.core.errors import FailureCode, JobFailed
from gateway.storage.outputs.job_files import open_output
from tests.gateway.storage.conftest import open_descriptors


def _link(path: Path) -> None:
    path.with_name("secret").write_text("s")
    path.symlink_to(path.with_name("secret"))


def _hard_link(path: Path) -> None:
    path.with_name("secret").write_text("s")
    path.hardlink_to(path.with_name("secret"))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "ended without writing its output"),
        (_link, "is a symbolic link"),
        (lambda path: path.symlink_to("/nowhere"), "is a symbolic link"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (os.mkfifo, "is not a regular file"),
        (_socket, "cannot be opened"),
        (_hard_link, "has 2 names"),
        (lambda path: path.symlink_to("/dev/zero"), "is a symbolic link"),
    ],
    ids=["nothing", "link", "dangling link", "directory", "fifo", "socket", "hard link", "device"],
)
def test_output_that_is_not_a_regular_file_is_refused(make: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    path = tmp_path / "output"
    make(path)
    with pytest.raises(JobFailed, match=said) as caught:
        open_output(path, owner_uid=os.getuid(), max_bytes=10)
    assert caught.value.code is FailureCode.OUTPUT_MISSING


def test_file_of_another_owner_is_refused(tmp_path: Path) -> None:
    (tmp_path / "output").write_bytes(b"x")
    with pytest.raises(JobFailed, match="another user"):
        open_output(tmp_path / "output", owner_uid=os.getuid() + 1, max_bytes=10)


def test_too_large_file_names_both_sizes(tmp_path: Path) -> None:
    (tmp_path / "output").write_bytes(b"x" * 11)
    with pytest.raises(JobFailed, match="11 bytes; the limit is 10") as caught:
        open_output(tmp_path / "output", owner_uid=None, max_bytes=10)
    assert caught.value.code is FailureCode.FILE_SIZE_LIMIT


def test_refusals_leave_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "output").write_bytes(b"x" * 11)
    before = open_descriptors()
    for _ in range(3):
        with pytest.raises(JobFailed):
            open_output(tmp_path / "output", owner_uid=None, max_bytes=10)
    assert open_descriptors() <= before


def test_opened_output_is_the_checked_file_even_when_the_path_changes(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_bytes(b"first")
    with open_output(path, owner_uid=os.getuid(), max_bytes=10) as output:
        path.unlink()
        path.write_bytes(b"second")
        assert (output.size_bytes, output.read(10), b"".join(output.chunks())) == (5, b"first", b"first")
        with pytest.raises(ValueError, match="5 bytes"):
            output.read(4)


def test_output_that_shrinks_is_an_error_and_not_a_short_result(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_bytes(b"12345")
    with open_output(path, owner_uid=None, max_bytes=10) as output:
        os.truncate(path, 2)
        with pytest.raises(OSError, match="ended after 2 of 5"):
            list(output.chunks())
