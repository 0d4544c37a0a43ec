"""Outputs wait in the outbox whole, and the next process takes over only what is complete."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import Raw
from msgspec.structs import replace

from gateway.core.async_files import BLOCK_BYTES, SMALL_BYTES
from gateway.core.directories import remove
from gateway.core.displays import DisplayedTable
from gateway.core.events import LogSnapshot
from gateway.core.job import OutputFacts, Verdict
from gateway.core.log_json import encode_line
from gateway.storage import Outbox, OutboxNote, open_output
from gateway.storage.outputs.outbox import NOTE, OUTPUT

VERDICT = Verdict(None, "", 0, output=OutputFacts(1, 1, 3, None, "jsonl"))
LINE = Raw(encode_line(1.0, "stdout", "printed"))
LEFT = OutboxNote(VERDICT, b"{}", LogSnapshot([LINE], [], displays=(DisplayedTable((("a",),), (("1",),)),)))


def put(directory: Path, outbox: Outbox, content: bytes) -> None:
    path = directory / "made"
    path.write_bytes(content)
    with open_output(path, owner_uid=None, max_bytes=1 << 30) as output:
        outbox.put("job", path, output, LEFT)


@pytest.mark.parametrize("size_bytes", [0, 3, SMALL_BYTES + 1])
def test_next_process_reclaims_the_outputs_of_the_last(tmp_path: Path, size_bytes: int) -> None:
    first = Outbox(tmp_path)
    put(tmp_path, first, b"x" * size_bytes)
    assert (first.status()["jobs"], first.status()["bytes"]) == (1, size_bytes)
    first.leave("job")
    again = Outbox(tmp_path)
    again.load()
    found = again.reclaim("job")
    assert found is not None
    note, output = found
    with output:
        assert replace(note, output=None) == replace(LEFT, output_bytes=size_bytes)
        assert output.read(1 << 30) == b"x" * size_bytes
    assert again.reclaim("job") is None
    again.remove_unclaimed()
    assert again.status()["jobs"] == 1
    asyncio.run(again.remove("job"))
    assert list((tmp_path / "outbox").iterdir()) == []


async def test_the_loop_runs_while_a_slow_disk_removes_a_large_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop_ran, outbox = threading.Event(), Outbox(tmp_path)

    def slow_remove(path: Path) -> None:
        assert loop_ran.wait(60), "the loop waits for the disk"
        remove(path)

    put(tmp_path, outbox, bytes(BLOCK_BYTES + 1))
    monkeypatch.setattr("gateway.storage.outputs.outbox.remove", slow_remove)
    removing = asyncio.create_task(outbox.remove("job"))
    await asyncio.sleep(0)
    assert outbox.status()["jobs"] == 0
    loop_ran.set()
    async with asyncio.timeout(60):
        await removing
    assert list((tmp_path / "outbox").iterdir()) == []


@pytest.mark.parametrize(("name", "content"), [(NOTE, None), (NOTE, b"{"), (OUTPUT, None), (OUTPUT, b"")])
def test_incomplete_large_outputs_are_removed(tmp_path: Path, name: str, content: bytes | None) -> None:
    put(tmp_path, Outbox(tmp_path), bytes(SMALL_BYTES + 1))
    path = tmp_path / "outbox" / "job" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    again = Outbox(tmp_path)
    again.load()
    assert again.reclaim("job") is None
    assert list((tmp_path / "outbox").iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda note: b"",
        lambda note: note[:40],
        lambda note: note.replace(b'"a"', b'"\xff"'),
        lambda note: note.replace(b"printed", b"print\xff"),
    ],
)
def test_damaged_small_output_is_removed(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    put(tmp_path, Outbox(tmp_path), b"abc")
    (path,) = (tmp_path / "outbox").iterdir()
    path.write_bytes(change(path.read_bytes()))
    again = Outbox(tmp_path)
    again.load()
    assert not again.has("job")
    assert again.reclaim("job") is None
    assert list((tmp_path / "outbox").iterdir()) == []


def test_earlier_version_reads_a_large_output_and_has_room_for_a_small_one(tmp_path: Path) -> None:
    """It refuses members that it does not know, and makes a directory with the id of each job."""
    put(tmp_path, Outbox(tmp_path), bytes(SMALL_BYTES + 1))
    note = json.loads((tmp_path / "outbox" / "job" / NOTE).read_bytes())
    assert note.keys() == {"verdict", "manifest", "log", "output_bytes"}
    shutil.rmtree(tmp_path / "outbox")
    put(tmp_path, Outbox(tmp_path), b"abc")
    (tmp_path / "outbox" / "job").mkdir()


def test_only_one_of_two_outputs_of_a_job_is_reclaimed(tmp_path: Path) -> None:
    """This version left the small one, and an earlier version that ran the job again left the other."""
    put(tmp_path, Outbox(tmp_path), b"abc")
    put(tmp_path, Outbox(tmp_path), bytes(SMALL_BYTES + 1))
    again = Outbox(tmp_path)
    again.load()
    assert again.has("job")
    found = again.reclaim("job")
    assert found is not None
    found[1].close()
    again.remove_unclaimed()
    assert again.status()["jobs"] == 1
    asyncio.run(again.remove("job"))
    assert list((tmp_path / "outbox").iterdir()) == []


@pytest.mark.parametrize("size_bytes", [3, SMALL_BYTES + 1])
def test_output_of_no_job_is_removed(tmp_path: Path, size_bytes: int) -> None:
    put(tmp_path, Outbox(tmp_path), bytes(size_bytes))
    again = Outbox(tmp_path)
    again.load()
    again.remove_unclaimed()
    assert list((tmp_path / "outbox").iterdir()) == []


@pytest.mark.parametrize("name", ["job", "job.small"])
def test_link_in_the_place_of_an_output_is_removed_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "outbox").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    (tmp_path / "outbox" / name).symlink_to(tmp_path / "other")
    outbox = Outbox(tmp_path)
    outbox.load()
    assert outbox.reclaim("job") is None
    assert list((tmp_path / "outbox").iterdir()) == []
    assert (tmp_path / "other" / "file").exists()
    put(tmp_path, outbox, b"abc")
